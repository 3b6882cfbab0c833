#pragma once

// What the sequences of a ServingDecoder's step mean for its rows. No tensors.

#include <cstdint>
#include <span>
#include <vector>

#include "model/config/model_config.h"
#include "model/nn/serving_decoder.h"

namespace llava {

struct StepRows {
  std::vector<int32_t> positions;  // [T]
  std::vector<int32_t> slots;      // [T]: block * kKvBlockTokens + place within it
};

// Throws std::invalid_argument if `rows` and `width` are not what the sequences need, a sequence is
// empty or beyond the model's context, a block is missing or not one of `num_blocks`, or a wanted
// row is none.
StepRows PlanStepRows(const DecoderConfig& config, int64_t num_blocks, at::IntArrayRef rows,
                      std::span<const StepSequence> sequences, std::span<const int64_t> wanted);

// Throws std::invalid_argument unless all have a row in the table of embeddings.
void CheckIds(const DecoderConfig& config, std::span<const int32_t> ids);

// Throws std::invalid_argument unless both are blocks.
void CheckCopy(int32_t from, int32_t to, int64_t num_blocks);

// Blocks that hold the first `tokens` tokens.
inline int64_t BlocksOf(int64_t tokens) { return (tokens + kKvBlockTokens - 1) / kKvBlockTokens; }

// Bytes of one block with 2 L Hkv Dh values a token.
inline int64_t KvBlockBytes(const DecoderConfig& config, int64_t value_bytes) {
  return 2 * config.num_layers * config.num_kv_heads * config.head_dim * kKvBlockTokens *
         value_bytes;
}

}  // namespace llava
