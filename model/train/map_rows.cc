#include "model/train/map_rows.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "model/data/scenes/scoring.h"
#include "model/text/labels.h"

namespace llava {
namespace {

constexpr int64_t kCells = kSceneGrid * kSceneGrid;

LabelledTokens Encode(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                      const Dialogue& dialogue, bool picture) {
  std::vector<ChatMessage> messages;
  messages.reserve(2 * dialogue.size());
  for (const Turn& turn : dialogue) {
    messages.push_back({ChatMessage::Role::kUser, turn.question, picture && messages.empty(), {}});
    messages.push_back({ChatMessage::Role::kAssistant, turn.answer, 0, {}});
  }
  return MakeLabels(tokenizer, chat_template, messages, picture);
}

std::vector<bool> FindKeyTokens(const Tokenizer& tokenizer) {
  std::vector<bool> is_key(tokenizer.vocab_size());
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.IsSpecial(id)) continue;
    const std::string word = tokenizer.TokenBytes(id);
    // Words begin with a space; a piece in the middle of one means nothing.
    is_key[id] = word.size() > 1 && word[0] == ' ' &&
                 !KeyWords(QuestionType::kDetail, std::string_view(word).substr(1)).empty();
  }
  return is_key;
}

}  // namespace

MapRows::MapRows(std::shared_ptr<const Tokenizer> tokenizer,
                 std::shared_ptr<const ChatTemplate> chat_template, double key_weight)
    : tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)),
      key_weight_(key_weight),
      is_key_(FindKeyTokens(*tokenizer_)) {
  // What two dialogues of nothing in common have in common.
  const Dialogue first = {{QuestionType::kWhat, "What is it?", "A lion."}};
  const Dialogue second = {{QuestionType::kSame, "Do these things belong together?", "No."}};
  for (const bool picture : {true, false}) {
    std::vector<int32_t>& prefix = picture ? picture_prefix_ : text_prefix_;
    const LabelledTokens a = Encode(*tokenizer_, *chat_template_, first, picture);
    const LabelledTokens b = Encode(*tokenizer_, *chat_template_, second, picture);
    const auto differ = std::mismatch(a.input_ids.begin(), a.input_ids.end(), b.input_ids.begin(),
                                      b.input_ids.end());
    prefix.assign(a.input_ids.begin(), differ.first);
  }
  // The picture ends what is shared: what follows may melt into the question.
  const auto mark = std::find(picture_prefix_.begin(), picture_prefix_.end(), kImageToken);
  if (mark == picture_prefix_.end() || text_prefix_.empty()) {
    throw std::invalid_argument("chat template \"" + chat_template_->name() +
                                "\" does not put the picture in front of the first question");
  }
  picture_prefix_.erase(mark + 1, picture_prefix_.end());
}

void MapRows::AddScene(const Scene& scene, std::span<const Dialogue> dialogues, int64_t most_tokens,
                       MapBatch& batch) const {
  AddRow(&scene, dialogues, most_tokens, batch);
}

void MapRows::AddFacts(std::span<const Dialogue> dialogues, int64_t most_tokens,
                       MapBatch& batch) const {
  AddRow(nullptr, dialogues, most_tokens, batch);
}

void MapRows::AddRow(const Scene* scene, std::span<const Dialogue> dialogues, int64_t most_tokens,
                     MapBatch& batch) const {
  const std::vector<int32_t>& prefix = scene ? picture_prefix_ : text_prefix_;
  const auto begin = static_cast<int64_t>(batch.sources.size());
  Segment segment;
  const auto add_word = [&](int32_t id) {
    batch.sources.push_back(static_cast<int64_t>(batch.text_ids.size()));
    batch.text_ids.push_back(id);
  };
  for (const int32_t id : prefix) {
    if (id != kImageToken) {
      add_word(id);
      continue;
    }
    const auto cell = static_cast<int64_t>(batch.scenes.size()) * kCells;
    for (int64_t i = 0; i < kCells; ++i) batch.sources.push_back(-1 - (cell + i));
  }
  segment.shared = static_cast<int64_t>(batch.sources.size()) - begin;
  segment.tokens = segment.shared;
  for (const Dialogue& dialogue : dialogues) {
    const LabelledTokens tokens = Encode(*tokenizer_, *chat_template_, dialogue, scene != nullptr);
    if (!std::equal(prefix.begin(), prefix.end(), tokens.input_ids.begin())) {
      throw std::invalid_argument("the question \"" + dialogue[0].question +
                                  "\" does not begin as others do");
    }
    const size_t length = tokens.input_ids.size() - prefix.size();
    if (segment.tokens + static_cast<int64_t>(length) > most_tokens) continue;
    const int64_t branch = begin + segment.tokens;
    auto turn = static_cast<int64_t>(batch.turns.size()) - 1;
    bool answering = false;
    for (size_t i = 0; i < length; ++i) {
      const int64_t label = tokens.labels[prefix.size() + i];
      add_word(tokens.input_ids[prefix.size() + i]);
      if (label != kIgnoreLabel) {
        if (!answering) ++turn;
        const int64_t row = branch + static_cast<int64_t>(i);
        batch.rows.push_back(i > 0 ? row - 1 : begin + segment.shared - 1);
        batch.targets.push_back(label);
        batch.turn_of.push_back(turn);
        batch.weights.push_back(is_key_[label] ? static_cast<float>(key_weight_) : 1.0f);
      }
      answering = label != kIgnoreLabel;
    }
    for (const Turn& asked : dialogue) batch.turns.push_back({asked.type, scene != nullptr});
    segment.branches.push_back(static_cast<int64_t>(length));
    segment.tokens += static_cast<int64_t>(length);
  }
  if (segment.branches.empty()) {
    throw std::invalid_argument("a row of " + std::to_string(most_tokens) +
                                " tokens has no room for a single dialogue");
  }
  batch.segments.push_back(std::move(segment));
  if (scene) batch.scenes.push_back(*scene);
}

}  // namespace llava
