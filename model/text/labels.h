#pragma once

// Training samples: token ids and the labels that say where the loss is taken.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"

namespace llava {

// Ids and labels of one training sample; kIgnoreLabel where no loss is taken.
inline constexpr int64_t kIgnoreLabel = -100;
struct LabelledTokens {
  std::string text;
  std::vector<int32_t> input_ids;  // kImageToken for a picture
  std::vector<int64_t> labels;
};

// The rule, for every template: loss on every token inside an answer range, its stop mark included,
// and nowhere else.
// Texts of samples are trusted: special tokens in them count. Throws as RenderTraining does.
LabelledTokens MakeLabels(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                          std::span<const ChatMessage> messages, bool has_image,
                          ChatTemplate::MarkPlace place = ChatTemplate::MarkPlace::kFront);
// What the published training script computes, quirks included (whole samples dropped on a length
// mismatch below `model_max_length`, masks that slip for v0): for comparing runs with the original.
// Throws std::invalid_argument for a template without published_labels.
LabelledTokens MakePublishedLabels(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                   std::span<const ChatMessage> messages, bool has_image,
                                   size_t model_max_length = 2048,
                                   ChatTemplate::MarkPlace place = ChatTemplate::MarkPlace::kFront);

}  // namespace llava
