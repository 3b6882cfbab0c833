#include "server/gateway/prompt.h"

#include <set>

namespace llava {

void Prompt::AddUser(const std::string& text, const std::vector<StoredImage>& images) {
  Message message{v1::ROLE_USER, text, {}, {}};
  for (const StoredImage& image : images) {
    message.images.push_back(image.info.id());
    if (image.bytes) files[image.info.id()] = image.bytes;
  }
  messages.push_back(std::move(message));
}

uint64_t Prompt::TextBytes() const {
  uint64_t bytes = 0;
  for (const Message& message : messages) bytes += message.text.size();
  return bytes;
}

uint64_t Prompt::PictureUses() const {
  uint64_t uses = 0;
  for (const Message& message : messages) uses += message.images.size();
  return uses;
}

std::vector<std::string> Prompt::DistinctImages() const {
  std::vector<std::string> images;
  std::set<std::string> seen;
  for (const Message& message : messages) {
    for (const std::string& id : message.images) {
      if (seen.insert(id).second) images.push_back(id);
    }
  }
  return images;
}

Prompt PromptOfConversation(const Conversation& conversation, size_t skip) {
  Prompt prompt;
  const v1::Session& session = conversation.session;
  if (session.has_system_prompt()) {
    prompt.messages.push_back({v1::ROLE_SYSTEM, session.system_prompt(), {}, {}});
  }
  for (size_t i = 0; i + skip < conversation.turns.size(); ++i) {
    const v1::Turn& turn = conversation.turns[i].turn;
    if (turn.answer_text().empty() || turn.dropped_from_context()) continue;
    Prompt::Message user{v1::ROLE_USER, turn.user_text(), {}, {}};
    for (const v1::ImageInfo& image : turn.images()) user.images.push_back(image.id());
    prompt.messages.push_back(std::move(user));
    prompt.messages.push_back(
        {v1::ROLE_ASSISTANT, turn.answer_text(), {}, conversation.turns[i].tokens});
  }
  return prompt;
}

Prompt PromptOf(const Conversation& conversation, const NewTurn& turn) {
  const auto& turns = conversation.turns;
  const bool is_last = !turns.empty() && turns.back().turn.id() == turn.id;
  Prompt prompt = PromptOfConversation(conversation, is_last ? 1 : 0);
  prompt.AddUser(turn.user_text, turn.images);
  if (!prompt.DistinctImages().empty()) return prompt;
  std::string image = conversation.kept_image;
  for (auto dropped = turns.rbegin(); dropped != turns.rend(); ++dropped) {
    const auto& images = dropped->turn.images();
    if (!dropped->turn.dropped_from_context() || images.empty()) continue;
    image = images[images.size() - 1].id();
    break;
  }
  if (image.empty()) return prompt;
  for (Prompt::Message& message : prompt.messages) {
    if (message.role != v1::ROLE_USER) continue;
    message.images.push_back(image);
    break;
  }
  return prompt;
}

void FillMessages(const Prompt& prompt, const std::map<std::string, v1::FeatureKey>& keys,
                  google::protobuf::RepeatedPtrField<v1::PromptMessage>* messages) {
  messages->Clear();
  for (const Prompt::Message& message : prompt.messages) {
    v1::PromptMessage& out = *messages->Add();
    out.set_role(message.role);
    out.set_text(message.text);
    for (const std::string& id : message.images) *out.add_images() = keys.at(id);
    if (message.tokens.ids_size() > 0) *out.mutable_tokens() = message.tokens;
  }
}

}  // namespace llava
