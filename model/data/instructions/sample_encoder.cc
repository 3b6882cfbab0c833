#include "model/data/instructions/sample_encoder.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "model/data/scenes/random.h"

namespace llava {
namespace {

using Place = ChatTemplate::MarkPlace;

constexpr uint64_t kImagePlace = 101;  // purpose of random numbers

// FNV-1a: names the stream of a record's random numbers, so it must not change.
uint64_t HashId(const std::string& id) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char byte : id) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3;
  return hash;
}

bool DependsOnPlace(BadRecordKind kind) {
  return kind == BadRecordKind::kTooLong || kind == BadRecordKind::kNothingToTrain;
}

}  // namespace

SampleEncoder::SampleEncoder(std::shared_ptr<const Tokenizer> tokenizer,
                             std::shared_ptr<const ChatTemplate> chat_template,
                             const SampleRules& rules)
    : tokenizer_(std::move(tokenizer)), chat_template_(std::move(chat_template)), rules_(rules) {}

EncodedSample SampleEncoder::Encode(const InstructionRecord& record, uint64_t epoch) const {
  switch (rules_.image_order) {
    case ImageOrder::kAsData:
      return Encode(record, Place::kAsWritten);
    case ImageOrder::kFront:
      return Encode(record, Place::kFront);
    case ImageOrder::kRandom:
      break;
  }
  if (record.images.empty()) return Encode(record, Place::kFront);
  const bool end = Random(rules_.seed, HashId(record.id), kImagePlace + epoch).Chance(0.5);
  return EncodeBetter(record, end ? Place::kEnd : Place::kFront, end ? Place::kFront : Place::kEnd);
}

// Text behind a picture is tokenized otherwise than text before it, by a token more or less: that
// must not decide whether a record fits, or an epoch could meet one that no survey has seen.
EncodedSample SampleEncoder::EncodeBetter(const InstructionRecord& record, Place drawn,
                                          Place other) const {
  std::optional<EncodedSample> first;
  try {
    first = Encode(record, drawn);
    if (first->dropped_turns == 0) return *std::move(first);
  } catch (const BadRecord& bad) {
    if (!DependsOnPlace(bad.kind())) throw;
  }
  try {
    EncodedSample second = Encode(record, other);
    if (!first || second.dropped_turns < first->dropped_turns) return second;
  } catch (const BadRecord& bad) {
    if (!first || !DependsOnPlace(bad.kind())) throw;
  }
  return *std::move(first);
}

EncodedSample SampleEncoder::Encode(const InstructionRecord& record, Place place) const {
  const size_t turns = record.messages.size() / 2;
  EncodedSample sample = EncodeTurns(record, place, turns);
  if (sample.tokens > rules_.max_tokens) {
    size_t fits = 0, too_many = turns;  // turns
    EncodedSample shorter;
    while (too_many - fits > 1) {
      const size_t middle = (fits + too_many) / 2;
      EncodedSample tried = EncodeTurns(record, place, middle);
      if (tried.tokens <= rules_.max_tokens) {
        fits = middle;
        shorter = std::move(tried);
      } else {
        too_many = middle;
      }
    }
    if (fits == 0) {
      const EncodedSample first = turns == 1 ? std::move(sample) : EncodeTurns(record, place, 1);
      throw BadRecord(BadRecordKind::kTooLong,
                      "with its first answer it has " + std::to_string(first.tokens) +
                          " tokens, at most " + std::to_string(rules_.max_tokens) +
                          " fit (max_tokens)");
    }
    sample = std::move(shorter);
  }
  if (sample.trained_tokens == 0) {
    throw BadRecord(BadRecordKind::kNothingToTrain,
                    "none of its " + std::to_string(sample.tokens) + " tokens has loss" +
                        (rules_.labels == LabelRule::kPublished
                             ? ": the published label rules drop it (labels=ours would not)"
                             : ""));
  }
  return sample;
}

EncodedSample SampleEncoder::EncodeTurns(const InstructionRecord& record, Place place,
                                         size_t turns) const {
  const std::span<const ChatMessage> messages(record.messages.data(), 2 * turns);
  const bool has_image = !record.images.empty();
  LabelledTokens labelled;
  try {
    labelled = rules_.labels == LabelRule::kAnswers
                   ? MakeLabels(*tokenizer_, *chat_template_, messages, has_image, place)
                   : MakePublishedLabels(*tokenizer_, *chat_template_, messages, has_image,
                                         rules_.max_tokens, place);
  } catch (const std::invalid_argument& error) {
    throw BadRecord(BadRecordKind::kTemplate, error.what());
  }
  EncodedSample sample;
  sample.input_ids = std::move(labelled.input_ids);
  sample.labels = std::move(labelled.labels);
  sample.num_images = std::count(sample.input_ids.begin(), sample.input_ids.end(), kImageToken);
  sample.tokens =
      static_cast<int64_t>(sample.input_ids.size()) + sample.num_images * (rules_.image_tokens - 1);
  // Nothing predicts the first token.
  sample.trained_tokens = std::count_if(sample.labels.begin() + 1, sample.labels.end(),
                                        [](int64_t label) { return label != kIgnoreLabel; });
  sample.turns = turns;
  sample.dropped_turns = record.messages.size() / 2 - turns;
  return sample;
}

}  // namespace llava
