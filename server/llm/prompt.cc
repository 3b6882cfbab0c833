#include "server/llm/prompt.h"

#include <algorithm>
#include <exception>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/status.h"
#include "server/wire/feature_key.h"
#include "server/wire/prompt_size.h"

namespace llava {
namespace {

using Messages = google::protobuf::RepeatedPtrField<v1::PromptMessage>;

absl::Status Invalid(int index, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("messages[", index, "]: ", what));
}

}  // namespace

PromptBuilder::PromptBuilder(std::shared_ptr<const Tokenizer> tokenizer,
                             std::shared_ptr<const ChatTemplate> chat_template, Options options)
    : tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)),
      options_(std::move(options)),
      tokenizer_digest_(ToBytes(tokenizer_->digest())) {}

absl::Status PromptBuilder::CheckMessages(const Messages& messages) const {
  if (messages.empty()) return absl::InvalidArgumentError("messages is empty");
  uint64_t bytes = 0;
  v1::Role expected = v1::ROLE_USER;
  for (int i = 0; i < messages.size(); ++i) {
    const v1::PromptMessage& message = messages[i];
    bytes += message.text().size();
    if (i == 0 && message.role() == v1::ROLE_SYSTEM) {
      if (!message.images().empty()) return Invalid(i, "a system message has no pictures");
      if (message.has_tokens()) return Invalid(i, "only an assistant message has tokens");
      continue;
    }
    if (message.role() != expected) {
      return Invalid(i, absl::StrCat("the role is ", v1::Role_Name(message.role()), ", expected ",
                                     v1::Role_Name(expected),
                                     ": an optional system message, then user and assistant in "
                                     "turn"));
    }
    if (message.role() == v1::ROLE_USER) {
      if (message.has_tokens()) return Invalid(i, "only an assistant message has tokens");
      if (message.text().empty() && message.images().empty()) {
        return Invalid(i, "a user message needs text or a picture");
      }
      expected = v1::ROLE_ASSISTANT;
    } else {
      if (!message.images().empty()) return Invalid(i, "only a user message has pictures");
      expected = v1::ROLE_USER;
    }
    for (const v1::FeatureKey& key : message.images()) {
      if (auto status = CheckFeatureKey(key); !status.ok()) {
        return Invalid(i, std::string(status.message()));
      }
      if (key.spec_digest() != options_.spec_digest) {
        return Invalid(i, absl::StrCat("the features ", FeatureKeyName(key),
                                       " are of another VisionSpec than this model's; encode the "
                                       "picture with the model's spec (ListModels)"));
      }
    }
  }
  if (expected != v1::ROLE_ASSISTANT) {
    return absl::InvalidArgumentError("messages must end with a user message");
  }
  // Before the tokenizer spends time on it.
  return CheckTextBytes(bytes, static_cast<uint64_t>(options_.context_tokens));
}

absl::StatusOr<std::vector<int32_t>> PromptBuilder::OwnIds(const v1::TokenIds& tokens,
                                                           const std::string& field) const {
  std::vector<int32_t> ids;
  if (tokens.tokenizer_digest() != tokenizer_digest_) return ids;
  ids.assign(tokens.ids().begin(), tokens.ids().end());
  const auto bad = std::find_if(ids.begin(), ids.end(), [this](int32_t id) {
    return id < 0 || id >= tokenizer_->vocab_size();
  });
  if (bad != ids.end()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": token id ", *bad,
                                                   " is out of range, the tokenizer has ",
                                                   tokenizer_->vocab_size(), " ids"));
  }
  return ids;
}

absl::StatusOr<Prompt> PromptBuilder::Build(const Messages& messages) const {
  if (auto status = CheckMessages(messages); !status.ok()) return status;
  Prompt prompt;
  std::optional<std::string> system;
  std::vector<ChatMessage> chat;
  for (int i = 0; i < messages.size(); ++i) {
    const v1::PromptMessage& message = messages[i];
    if (message.role() == v1::ROLE_SYSTEM) {
      system = message.text();
      continue;
    }
    ChatMessage& out = chat.emplace_back();
    out.text = message.text();
    out.num_images = message.images_size();
    prompt.images.insert(prompt.images.end(), message.images().begin(), message.images().end());
    if (message.role() == v1::ROLE_USER) continue;
    out.role = ChatMessage::Role::kAssistant;
    auto ids = OwnIds(message.tokens(), absl::StrCat("messages[", i, "].tokens"));
    if (!ids.ok()) return ids.status();
    out.token_ids = *std::move(ids);
  }
  try {
    prompt.ids = tokenizer_->EncodePrompt(chat_template_->Render(chat, system));
  } catch (...) {
    return FromException(std::current_exception());
  }
  const auto marks = std::count(prompt.ids.begin(), prompt.ids.end(), kImageToken);
  prompt.text_tokens = static_cast<int64_t>(prompt.ids.size()) - marks;
  if (!sizes_matter()) {
    prompt.picture_tokens.assign(static_cast<size_t>(marks), options_.pictures.most_tokens());
    prompt.image_tokens = marks * options_.pictures.most_tokens();
  }
  return prompt;
}

void PromptBuilder::CountPictures(std::span<const std::shared_ptr<const StoredFeatures>> features,
                                  Prompt& prompt) const {
  prompt.picture_tokens.clear();
  for (const auto& stored : features) {
    prompt.picture_tokens.push_back(options_.pictures.NumTokens(stored->picture));
  }
  prompt.image_tokens =
      std::accumulate(prompt.picture_tokens.begin(), prompt.picture_tokens.end(), int64_t{0});
}

absl::Status PromptBuilder::CheckFits(const Prompt& prompt) const {
  if (prompt.tokens() < options_.context_tokens) return absl::OkStatus();
  return PromptTooLong(absl::StrCat(prompt.tokens(), " tokens (", prompt.text_tokens, " text, ",
                                    prompt.image_tokens, " image)"),
                       static_cast<uint64_t>(options_.context_tokens),
                       "at least one of them for the answer; drop older turns or pictures, or "
                       "shorten the message");
}

}  // namespace llava
