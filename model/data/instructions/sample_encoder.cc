#include "model/data/instructions/sample_encoder.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

#include "model/data/scenes/random.h"
#include "model/data/scenes/stream_name.h"

namespace llava {
namespace {

using Place = ChatTemplate::MarkPlace;

constexpr uint64_t kImagePlace = 101;  // purpose of random numbers

std::string OfPictures(const EncodedSample& sample) {
  if (sample.num_images == 0) return "";
  return "; " + std::to_string(sample.image_tokens) + " of them stand for pictures";
}

bool DependsOnPlace(BadRecordKind kind) {
  return kind == BadRecordKind::kTooLong || kind == BadRecordKind::kNothingToTrain;
}

}  // namespace

SampleEncoder::SampleEncoder(std::shared_ptr<const Tokenizer> tokenizer,
                             std::shared_ptr<const ChatTemplate> chat_template,
                             const SampleRules& rules)
    : tokenizer_(std::move(tokenizer)), chat_template_(std::move(chat_template)), rules_(rules) {}

EncodedSample SampleEncoder::Encode(const InstructionRecord& record, uint64_t epoch,
                                    std::span<const Resolution> sizes) const {
  const size_t pictures = record.images.size();
  if (!rules_.pictures.is_fixed() && sizes.size() != pictures) {
    throw std::invalid_argument("a record of " + std::to_string(pictures) +
                                " pictures, but sizes of " + std::to_string(sizes.size()) +
                                ": how many tokens they take depends on these");
  }
  Told told{record, {}};
  for (size_t i = 0; i < pictures; ++i) {
    told.picture_tokens.push_back(
        rules_.pictures.NumTokens(rules_.pictures.is_fixed() ? Resolution() : sizes[i]));
  }
  switch (rules_.image_order) {
    case ImageOrder::kAsData:
      return Encode(told, Place::kAsWritten);
    case ImageOrder::kFront:
      return Encode(told, Place::kFront);
    case ImageOrder::kRandom:
      break;
  }
  if (record.images.empty()) return Encode(told, Place::kFront);
  const bool end = Random(rules_.seed, StreamNamed(record.id), kImagePlace + epoch).Chance(0.5);
  return EncodeBetter(told, end ? Place::kEnd : Place::kFront, end ? Place::kFront : Place::kEnd);
}

// Text behind a picture is tokenized otherwise than text before it, by a token more or less: that
// must not decide whether a record fits, or an epoch could meet one that no survey has seen.
EncodedSample SampleEncoder::EncodeBetter(const Told& told, Place drawn, Place other) const {
  std::optional<EncodedSample> first;
  try {
    first = Encode(told, drawn);
    if (first->dropped_turns == 0) return *std::move(first);
  } catch (const BadRecord& bad) {
    if (!DependsOnPlace(bad.kind())) throw;
  }
  try {
    EncodedSample second = Encode(told, other);
    if (!first || second.dropped_turns < first->dropped_turns) return second;
  } catch (const BadRecord& bad) {
    if (!first || !DependsOnPlace(bad.kind())) throw;
  }
  return *std::move(first);
}

EncodedSample SampleEncoder::Encode(const Told& told, Place place) const {
  const size_t turns = told.record.messages.size() / 2;
  EncodedSample sample = EncodeTurns(told, place, turns);
  if (sample.tokens > rules_.max_tokens) {
    size_t fits = 0, too_many = turns;  // turns
    EncodedSample shorter;
    while (too_many - fits > 1) {
      const size_t middle = (fits + too_many) / 2;
      EncodedSample tried = EncodeTurns(told, place, middle);
      if (tried.tokens <= rules_.max_tokens) {
        fits = middle;
        shorter = std::move(tried);
      } else {
        too_many = middle;
      }
    }
    if (fits == 0) {
      const EncodedSample first = turns == 1 ? std::move(sample) : EncodeTurns(told, place, 1);
      throw BadRecord(BadRecordKind::kTooLong,
                      "with its first answer it has " + std::to_string(first.tokens) +
                          " tokens, at most " + std::to_string(rules_.max_tokens) +
                          " fit (max_tokens)" + OfPictures(first));
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

EncodedSample SampleEncoder::EncodeTurns(const Told& told, Place place, size_t turns) const {
  const InstructionRecord& record = told.record;
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
  if (static_cast<size_t>(sample.num_images) > told.picture_tokens.size()) {
    throw BadRecord(BadRecordKind::kTemplate,
                    std::to_string(sample.num_images) + " image marks, but " +
                        std::to_string(told.picture_tokens.size()) + " pictures");
  }
  const auto first = told.picture_tokens.begin();  // those of the turns come first
  sample.image_tokens = std::accumulate(first, first + sample.num_images, int64_t{0});
  sample.tokens =
      static_cast<int64_t>(sample.input_ids.size()) - sample.num_images + sample.image_tokens;
  // Nothing predicts the first token.
  sample.trained_tokens = std::count_if(sample.labels.begin() + 1, sample.labels.end(),
                                        [](int64_t label) { return label != kIgnoreLabel; });
  sample.turns = turns;
  sample.dropped_turns = record.messages.size() / 2 - turns;
  return sample;
}

}  // namespace llava
