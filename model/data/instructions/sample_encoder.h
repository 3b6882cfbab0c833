#pragma once

// Records as what a network trains on: token ids and labels.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/config/picture_shape.h"
#include "model/data/instructions/instruction_record.h"
#include "model/text/labels.h"

namespace llava {

// Where a question's picture stands.
enum class ImageOrder {
  kRandom,  // before or behind the text, by chance (the paper): by seed, epoch and record id
  kAsData,  // as the data has it
  kFront,   // before the text, as the published trainer since July 2023
};

// Where the loss is taken.
enum class LabelRule {
  kAnswers,    // MakeLabels
  kPublished,  // MakePublishedLabels
};

struct SampleRules {
  ImageOrder image_order = ImageOrder::kRandom;
  LabelRule labels = LabelRule::kAnswers;
  int64_t max_tokens = 2048;                      // of a sample, image tokens included
  PictureShape pictures = PictureShape({}, 576);  // how many tokens stand for one
  uint64_t seed = 42;
};

struct EncodedSample {
  std::vector<int32_t> input_ids;  // kImageToken for a picture
  std::vector<int64_t> labels;     // kIgnoreLabel where no loss is taken
  int64_t tokens = 0;              // with all image tokens
  int64_t trained_tokens = 0;
  int64_t image_tokens = 0;  // among `tokens`
  int num_images = 0;        // of the record's, those still in
  int turns = 0;             // still in
  int dropped_turns = 0;     // at the end, because they did not fit
};

// Const after construction, thread-safe.
class SampleEncoder {
 public:
  // `tokenizer` knows the template's special pieces.
  SampleEncoder(std::shared_ptr<const Tokenizer> tokenizer,
                std::shared_ptr<const ChatTemplate> chat_template, const SampleRules& rules);

  // `sizes`: of the record's pictures in pixels; may be left out where all take as many tokens.
  // What does not fit into max_tokens is cut off in whole turns, so that no answer loses its end
  // and no picture a part.
  // Of the two places that may be drawn, the other one is taken where it saves a turn or the
  // record. Throws BadRecord if not even the first turn fits, nothing is left to train, or the
  // template cannot tell the record: with any epoch or with none.
  EncodedSample Encode(const InstructionRecord& record, uint64_t epoch,
                       std::span<const Resolution> sizes = {}) const;

  const SampleRules& rules() const { return rules_; }

 private:
  // A record with the tokens of each of its pictures.
  struct Told {
    const InstructionRecord& record;
    std::vector<int64_t> picture_tokens;
  };
  EncodedSample Encode(const Told& told, ChatTemplate::MarkPlace place) const;
  EncodedSample EncodeBetter(const Told& told, ChatTemplate::MarkPlace drawn,
                             ChatTemplate::MarkPlace other) const;
  EncodedSample EncodeTurns(const Told& told, ChatTemplate::MarkPlace place, size_t turns) const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  SampleRules rules_;
};

}  // namespace llava
