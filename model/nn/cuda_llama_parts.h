#pragma once

// What the files of CudaLlama share: the inputs of a forward call and its recordings.

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/nn/cuda_llama.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/runtime.h"

namespace llava {

// Batches that graphs are recorded for; smaller ones are padded.
inline constexpr std::array<int64_t, 7> kGraphSequences = {1, 2, 4, 8, 16, 32, 64};

// By how many sequences and stretches there is a graph for steps of `sequences`, of which the
// longest has `splits`.
inline int64_t GraphSequences(int64_t sequences) {
  return *std::lower_bound(kGraphSequences.begin(), kGraphSequences.end(), sequences);
}
inline int64_t GraphSplits(int64_t splits) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(splits)));
}

inline int64_t SplitsOf(int64_t length) {
  return (length + cuda::kSplitTokens - 1) / cuda::kSplitTokens;
}

// |found - expected| / |expected|; 0 where the expected numbers are not finite themselves, infinity
// where only those found are not.
double RelativeDistance(const at::Tensor& expected, const at::Tensor& found);

// What a forward call needs besides its rows; index tensors are int32 on the device.
struct CudaLlama::Batch {
  at::Tensor positions, slots;  // [T]
  // Sequences with one token: their rows, keys seen, and blocks.
  at::Tensor decode_rows, lengths, tables;  // [N], [N], [N, W]
  int64_t splits = 0;                       // stretches of the longest of them
  // The others.
  struct Chunk {
    int64_t begin, tokens, computed;
    at::Tensor blocks;
  };
  std::vector<Chunk> chunks;
  at::Tensor wanted;  // rows; undefined: all
};

// A recorded forward call with the memory that it reads and writes.
struct CudaLlama::DecodeGraph {
  at::Tensor rows;    // [B, D]
  at::Tensor inputs;  // positions, slots, lengths, tables, one behind the other
  at::Tensor logits;  // [B, V]
  int64_t blocks;     // of a table's row
  std::unique_ptr<cuda::Graph> graph;
};

}  // namespace llava
