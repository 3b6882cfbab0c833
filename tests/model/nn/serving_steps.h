#pragma once

// Drives a ServingDecoder the way an engine does: sequences with blocks of their own, advanced in
// pieces.

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/nn/serving_decoder.h"

namespace llava {

class ServingSteps {
 public:
  explicit ServingSteps(ServingDecoder& decoder);

  struct Piece {
    int sequence;
    std::span<const int32_t> ids;
  };
  // One step over the pieces, every sequence at most once. Logits of all rows [T, V].
  at::Tensor Step(std::span<const Piece> pieces);
  // The ids of a new sequence in pieces of at most `most` tokens: logits of all rows.
  at::Tensor Whole(std::span<const int32_t> ids, int64_t most);
  // A sequence without tokens; its blocks are scattered over the memory.
  int Begin();
  // A sequence that begins with the first `tokens` tokens of another: whole blocks shared, the last
  // one copied.
  int Fork(int sequence, int64_t tokens);
  void End(int sequence);

 private:
  struct Sequence {
    int64_t computed = 0;
    std::vector<int32_t> blocks, owned;
  };
  int32_t TakeBlock(Sequence& sequence);

  ServingDecoder& decoder_;
  std::vector<int32_t> free_;
  std::vector<Sequence> sequences_;
};

// `count` ids of a vocabulary of `size`, other ones for each seed.
std::vector<int32_t> TestIds(int64_t count, int64_t seed, int64_t size);

}  // namespace llava
