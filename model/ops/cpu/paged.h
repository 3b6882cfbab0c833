#pragma once

// What the kernels of paged attention know of each other: how keys and values lie in a block, and
// their tasks. Plain data; paged_attention.h is what others use.
//
// A block holds 16 tokens of one layer, for each key/value head:
//   keys, a lane for each token:  float [Dh][16], int8 [Dh][16], bfloat16 [Dh / 2][16][2]
//   values:                       float [16][Dh], int8 [16][Dh], bfloat16 [8][Dh][2], tokens in
//   pairs of int8, two times 16 floats: the scales of its keys and of its values
//
// Sums go over keys in an order that absolute positions fix. Keys are cut into ranges of 512: of
// each range, scores, their peak, exponentials and weighted values; ranges are merged in order.
// So it makes no difference who else is in the batch, how a prompt was cut or who does what.

#include <cstdint>

#include "model/ops/cpu/kernels.h"

namespace llava::ops::cpu {

enum class KvElement : uint8_t { kFloat, kBFloat16, kInt8 };

inline constexpr int64_t kBlockTokens = 16;
constexpr int64_t kRangeTokens = 512;
constexpr int64_t kMostHeadDim = 256;

// How keys and values of one layer lie in a block.
struct KvLayout {
  // Throws std::invalid_argument: no heads; `head_dim` odd or not in [16, 256].
  KvLayout(KvElement element, int64_t kv_heads, int64_t head_dim);

  KvElement element;
  int64_t kv_heads, head_dim;
  int64_t block_bytes;  // of one layer; a multiple of 64
  int64_t head_bytes;   // of one head within it; a multiple of 64
};

// The blocks of one sequence in one layer.
struct PagedBlocks {
  const KvLayout* layout = nullptr;
  uint8_t* layer = nullptr;  // block b begins at layer + b * stride
  int64_t stride = 0;
  const int32_t* table = nullptr;
};

// Consecutive tokens of a sequence.
struct PagedTokens {
  int64_t position = 0;  // of the first
  int64_t count = 0;
  const float* cosine = nullptr;  // [positions, Dh / 2]
  const float* sine = nullptr;
};

// Turns keys, and puts keys and values of all heads into their blocks.
struct WriteKvTask {
  PagedBlocks blocks;
  PagedTokens tokens;
  const float* k = nullptr;  // of the first token; [tokens, Hkv Dh], rows `stride` apart
  const float* v = nullptr;
  int64_t stride = 0;
};

// Queries of one key/value head against some of the ranges.
struct AttendTask {
  PagedBlocks blocks;
  PagedTokens tokens;
  int64_t kv_head = 0, group = 0;  // query heads of the key/value head
  const float* q = nullptr;        // of the first token and head; rows `stride` apart
  int64_t stride = 0;
  int64_t first_range = 0, ranges = 0;
  // [tokens][group] lines of PaddedHeadDim(..) + 16 floats: weighted values, the peak of scores,
  // the sum of exponentials. Untouched for tokens before the first range.
  float* sums = nullptr;
  float* scratch = nullptr;  // attend_scratch(..) floats, aligned to 64 bytes
};

// Merges the sums of all ranges and writes them.
struct FinishAttendTask {
  int64_t head_dim = 0;
  int64_t position = 0, tokens = 0, group = 0;
  int64_t parts = 0;  // 1: sums hold all ranges; else one for each range that the last token sees
  float* sums = nullptr;
  int64_t part_stride = 0;  // floats between the sums of two ranges
  float* out = nullptr;     // of the first token and head; rows `stride` floats apart
  int64_t stride = 0;
};

}  // namespace llava::ops::cpu
