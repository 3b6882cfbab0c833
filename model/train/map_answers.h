#pragma once

// What a language model says about maps of words: the oracle of every tower, since no picture can
// tell more.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/data/scenes/scene.h"
#include "model/eval/text_map.h"
#include "model/nn/llama.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"

namespace llava {

struct MapQuestion {
  const Scene* scene;
  std::string text;
};

// Greedy answers of at most `most_tokens` tokens, all questions side by side. Without gradients.
std::vector<std::string> AnswerMaps(const LlamaDecoder& decoder, const TextMap& map,
                                    const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                    std::span<const MapQuestion> questions,
                                    int64_t most_tokens = 48);

}  // namespace llava
