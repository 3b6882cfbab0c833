#pragma once

// The small files of a llava-hf folder: what ReadHfLanguage, ReadClip and Tokenizer::Load read, and
// what else transformers asks for.

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"

namespace llava {

// The tokenizer of such a folder, and what it asks of the tables. llava-hf has a token for pictures
// and one to pad with; what is missing takes the ids behind the tokenizer's own.
struct HfTokens {
  std::shared_ptr<const Tokenizer> tokenizer;
  int32_t image = 0, pad = 0;
  // Rows of the tables: as many as there are if the ids fit in, else a multiple of 64 as in
  // llava-hf's.
  int64_t rows = 0;
};
HfTokens HfTokensOf(const LanguageCheckpoint& language);

// Throws std::runtime_error that names what llava-hf has no word for, and the way out.
void CheckHfCanHold(const LanguageCheckpoint& language);

// Name and content of each. `dtype`: in which transformers loads the weights unless it is told
// otherwise.
std::map<std::string, std::string> HfFiles(const LanguageCheckpoint& language,
                                           const TowerCheckpoint& tower, const HfTokens& tokens,
                                           at::ScalarType dtype);

}  // namespace llava
