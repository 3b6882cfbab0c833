// Attention over bfloat16 keys and values in blocks, by AMX.
//
// Blocks of keys are tiles as they lie. Values are copied, tokens in pairs behind each other, with
// zeros where nothing is seen: rows of a tile of queries take different numbers of keys, and give
// weight 0 to the others. Queries and weights are rounded to bfloat16. All rows go through tiles,
// which round otherwise than other instructions. Scores are logarithms to the base of 2, and their
// powers are as exact as what they are rounded to needs: tiles leave most of the time to these.
#include "model/ops/cpu/paged_tiles.h"

#ifndef __AMX_TILE__

namespace llava::ops::cpu::LLAVA_ISA {

int64_t TilesScratch(const KvLayout&, int64_t) { return 0; }
bool AttendByTiles(const AttendTask&) { return false; }

}  // namespace llava::ops::cpu::LLAVA_ISA

#else

#include "model/ops/cpu/amx_tiles.h"
#include "model/ops/cpu/paged_simd.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

constexpr int64_t kDepth = 32;                          // that a product of tiles sums over
constexpr int64_t kRows = 2 * kTileRows;                // at a time
constexpr int64_t kScoresLine = kRangeTokens + kLanes;  // so that lines differ in cache sets
constexpr int64_t kWeightsLine = kRangeTokens + 2 * kLanes;
constexpr int64_t kRangeBlocks = kRangeTokens / kBlockTokens;
constexpr float kLogarithmOf2 = 0.693147181f;

// In floats, or in pairs of bfloat16.
struct Layout {
  Layout(const KvLayout& kv, int64_t rows)
      : width(Padded(kv.head_dim)),
        depth((kv.head_dim + kDepth - 1) / kDepth * kDepth),
        line(width + kLanes),
        q(0),
        scores(q + rows * depth / 2),
        weights(scores + kRows * kScoresLine),
        part(weights + kRows * kWeightsLine / 2),
        values(part + kRows * line),
        keys(values + kRangeTokens / 2 * width),
        size(keys + (depth == kv.head_dim ? 0 : kRangeTokens * depth / 2)) {}
  int64_t width, depth, line, q, scores, weights, part, values, keys, size;
};

struct Range {
  HeadParts blocks[kRangeBlocks];
  const uint8_t* keys[kRangeBlocks];
};

// out [rows][16 C] = a [rows][kDepth steps] times C tiles of b, a step apart; strides in bytes.
struct Operand {
  const void* data;
  int64_t line, step;
};
template <int R, int C>
[[gnu::always_inline]] inline void Product(const Operand& a, const Operand& b, const void* b_next,
                                           int64_t steps, float* out, int64_t out_line) {
  const char* a0 = static_cast<const char*>(a.data);
  const char* a1 = a0 + kTileRows * a.line;
  const char* b0 = static_cast<const char*>(b.data);
  const char* b1 = static_cast<const char*>(b_next);
  _tile_zero(0);
  if constexpr (C == 2) _tile_zero(1);
  if constexpr (R == 2) _tile_zero(2);
  if constexpr (R == 2 && C == 2) _tile_zero(3);
  for (int64_t i = 0; i < steps; ++i) {
    _tile_loadd(4, a0, a.line);
    _tile_loadd(6, b0, b.line);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (C == 2) {
      _tile_loadd(7, b1, b.line);
      _tile_dpbf16ps(1, 4, 7);
      b1 += b.step;
    }
    if constexpr (R == 2) {
      _tile_loadd(5, a1, a.line);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (C == 2) _tile_dpbf16ps(3, 5, 7);
      a1 += a.step;
    }
    a0 += a.step;
    b0 += b.step;
  }
  const int64_t line = out_line * 4;
  _tile_stored(0, out, line);
  if constexpr (C == 2) _tile_stored(1, out + kLanes, line);
  if constexpr (R == 2) _tile_stored(2, out + kTileRows * out_line, line);
  if constexpr (R == 2 && C == 2) _tile_stored(3, out + kTileRows * out_line + kLanes, line);
}

// The first `count` tokens' values, and zeros up to a whole step. Returns whether all are finite.
bool CopyValues(const Range& range, int64_t count, int64_t dim, const Layout& at, float* scratch) {
  constexpr uint32_t kExponents = 0x7F807F80;
  BitVector infinite = {};
  const int64_t end = (count + kDepth - 1) / kDepth * kDepth;
  for (int64_t token = 0; token < end; token += 2) {
    float* const to = scratch + at.values + token / 2 * at.width;
    // Half a pair may be seen.
    const uint32_t seen = token >= count ? 0 : token + 1 == count ? 0xFFFF : 0xFFFFFFFF;
    const float* const from =
        seen == 0 ? nullptr
                  : reinterpret_cast<const float*>(range.blocks[token / kBlockTokens].values) +
                        token % kBlockTokens / 2 * dim;
    for (int64_t d = 0; d < at.width; d += kLanes) {
      Vector v = {};
      if (seen != 0) v = d + kLanes <= dim ? Load(from + d) : LoadPart(from + d, dim - d);
      const BitVector bits = reinterpret_cast<BitVector>(v) & seen;
      const BitVector exponents = bits & kExponents;
      infinite |= reinterpret_cast<BitVector>((exponents & 0xFFFF) == (kExponents & 0xFFFF));
      infinite |= reinterpret_cast<BitVector>(exponents >> 16 == kExponents >> 16);
      Store(to + d, reinterpret_cast<Vector>(bits));
    }
  }
  Written(scratch);
  uint32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= infinite[lane];
  return any == 0;
}

// Keys whose size is no whole number of steps get zeros behind them.
void PadKeys(Range& range, int64_t blocks, int64_t dim, const Layout& at, float* scratch) {
  for (int64_t b = 0; b < blocks; ++b) {
    float* const to = scratch + at.keys + b * at.depth / 2 * kLanes;
    const int64_t pairs = dim / 2 * kLanes;
    __builtin_memcpy(to, range.blocks[b].keys, pairs * 4);
    __builtin_memset(to + pairs, 0, (at.depth / 2 * kLanes - pairs) * 4);
    range.keys[b] = reinterpret_cast<const uint8_t*>(to);
  }
}

// 2^x for x <= 0, to 4 in a million; 0 where it would be less than 2^-126.
[[gnu::always_inline]] inline Vector PowerOf2(Vector x) {
  constexpr int kFractionAboveFloor = 0x09;
  const __m512 v = (__m512)x;
  const Vector r = (Vector)_mm512_reduce_ps(v, kFractionAboveFloor);
  const Vector zero = {};
  Vector p = Fused(zero + 0.0136703094f, r, zero + 0.0517449975f);
  p = Fused(p, r, zero + 0.2416043580f);
  p = Fused(p, r, zero + 0.6929728985f);
  p = Fused(p, r, zero + 1.0000034571f);
  const __mmask16 seen = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return (Vector)_mm512_maskz_scalef_ps(seen, (__m512)p, v);
}

// The first `visible` scores of a row become weights of values, up to a whole vector.
[[gnu::always_inline]] inline Softmax WeighRounded(int64_t visible, float* scores, BFloat16* to) {
  const Vector never = Vector{} - __builtin_inff();
  Vector most = never;
  const int64_t whole = visible / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) most = Max(most, Load(scores + i));
  if (whole < visible) {
    Vector v = Load(scores + whole);
    v = kLane < static_cast<int32_t>(visible - whole) ? v : never;
    Store(scores + whole, v);
    most = Max(most, v);
  }
  const float peak = Largest(most);
  Vector total = {};
  for (int64_t i = 0; i < visible; i += kLanes) {
    const Vector p = PowerOf2(Load(scores + i) - peak);
    total += p;
    StoreRounded(to + i, p);
  }
  return {peak, Sum(total)};
}

// Merges rows of a later range into those before it, as Merge does.
void MergeRows(float* sums, const float* part, int64_t rows, int64_t width, int64_t line) {
  for (int64_t first = 0; first < rows; first += kLanes) {
    const int64_t count = rows - first < kLanes ? rows - first : kLanes;
    Vector before = {}, after = {};
    for (int64_t r = 0; r < count; ++r) {
      before[r] = sums[(first + r) * line + width];
      after[r] = part[(first + r) * line + width];
    }
    const Vector peaks = Max(before, after);
    const Vector a = Exp(before - peaks), b = Exp(after - peaks);
    for (int64_t r = 0; r < count; ++r) {
      float* const to = sums + (first + r) * line;
      const float* const from = part + (first + r) * line;
      for (int64_t i = 0; i < width; i += kLanes) {
        Store(to + i, Load(to + i) * a[r] + Load(from + i) * b[r]);
      }
      to[width] = peaks[r];
      to[width + 1] = to[width + 1] * a[r] + from[width + 1] * b[r];
    }
  }
}

// Rows [row, end) of a range whose values are copied.
void Tiles(const Range& range, const HeadRows& rows, int64_t row, int64_t end, const Layout& at,
           bool first, int& configured, const AttendTask& task) {
  float* const scores = task.scratch + at.scores;
  BFloat16* const weights = reinterpret_cast<BFloat16*>(task.scratch + at.weights);
  const BFloat16* const q = reinterpret_cast<const BFloat16*>(task.scratch + at.q);
  const auto* const values = task.scratch + at.values;
  ForTiles<false>(row, end, 2 * kDepth, configured, [&]<int R>(int64_t begin, int64_t count) {
    const int64_t most = rows.visible(begin + count - 1);
    const int64_t blocks = (most + kBlockTokens - 1) / kBlockTokens;
    const Operand queries{q + begin * at.depth, at.depth * 2, kDepth * 2};
    int64_t b = 0;
    for (; b + 2 <= blocks; b += 2) {
      Product<R, 2>(queries, {range.keys[b], 64, 64 * kDepth / 2}, range.keys[b + 1],
                    at.depth / kDepth, scores + b * kLanes, kScoresLine);
    }
    if (b < blocks) {
      Product<R, 1>(queries, {range.keys[b], 64, 64 * kDepth / 2}, nullptr, at.depth / kDepth,
                    scores + b * kLanes, kScoresLine);
    }

    float* const part = first ? task.sums + begin * at.line : task.scratch + at.part;
    const int64_t steps = (most + kDepth - 1) / kDepth;
    for (int64_t r = 0; r < count; ++r) {
      float* const line = scores + r * kScoresLine;
      BFloat16* const to = weights + r * kWeightsLine;
      const int64_t visible = rows.visible(begin + r);
      const Softmax softmax = WeighRounded(visible, line, to);
      part[r * at.line + at.width] = softmax.peak * kLogarithmOf2;
      part[r * at.line + at.width + 1] = softmax.total;
      for (int64_t i = Padded(visible); i < steps * kDepth; i += kLanes) {
        StoreRounded(to + i, Vector{});
      }
    }
    Written(weights);

    const Operand from{weights, kWeightsLine * 2, kDepth * 2};
    int64_t column = 0;
    for (; column + 2 * kLanes <= at.width; column += 2 * kLanes) {
      Product<R, 2>(from, {values + column, at.width * 4, at.width * 4 * kDepth / 2},
                    values + column + kLanes, steps, part + column, at.line);
    }
    if (column < at.width) {
      Product<R, 1>(from, {values + column, at.width * 4, at.width * 4 * kDepth / 2}, nullptr,
                    steps, part + column, at.line);
    }
    if (!first) MergeRows(task.sums + begin * at.line, part, count, at.width, at.line);
  });
}

void RoundQueries(const AttendTask& task, const Layout& at) {
  const int64_t dim = task.blocks.layout->head_dim, half = dim / 2;
  const float scale = 1.0f / (kLogarithmOf2 * __builtin_sqrtf(static_cast<float>(dim)));
  alignas(64) float line[kMostHeadDim] = {};
  for (int64_t row = 0; row < task.tokens.count * task.group; ++row) {
    const int64_t t = row / task.group, angle = (task.tokens.position + t) * half;
    Turn(task.q + t * task.stride + row % task.group * dim, task.tokens.cosine + angle,
         task.tokens.sine + angle, half, scale, line);
    BFloat16* const to = reinterpret_cast<BFloat16*>(task.scratch + at.q) + row * at.depth;
    for (int64_t d = 0; d < at.depth; d += kLanes) StoreRounded(to + d, Load(line + d));
  }
  Written(task.scratch);
}

}  // namespace

int64_t TilesScratch(const KvLayout& layout, int64_t rows) {
  return layout.element == KvElement::kBFloat16 ? Layout(layout, rows).size : 0;
}

bool AttendByTiles(const AttendTask& task) {
  const KvLayout& layout = *task.blocks.layout;
  if (layout.element != KvElement::kBFloat16) return false;
  const int64_t dim = layout.head_dim, num_rows = task.tokens.count * task.group;
  const Layout at(layout, num_rows);
  RoundQueries(task, at);
  int configured = 0;
  for (int64_t index = task.first_range; index < task.first_range + task.ranges; ++index) {
    const HeadRows rows{task.tokens.position - index * kRangeTokens, task.group};
    const int64_t visible = rows.visible(num_rows - 1);
    const int64_t blocks = (visible + kBlockTokens - 1) / kBlockTokens;
    Range range;
    for (int64_t b = 0; b < blocks; ++b) {
      range.blocks[b] = PartsOf(task.blocks, index * kRangeBlocks + b, task.kv_head);
      range.keys[b] = range.blocks[b].keys;
    }
    if (at.depth != dim) PadKeys(range, blocks, dim, at, task.scratch);
    const bool first = index == task.first_range;
    const int64_t row = rows.position < 0 ? -rows.position * task.group : 0;
    if (CopyValues(range, visible, dim, at, task.scratch)) {
      Tiles(range, rows, row, num_rows, at, first, configured, task);
      continue;
    }
    // Weight 0 times infinity is not 0: rows must not meet values that they do not see.
    for (int64_t one = row; one < num_rows; one += task.group) {
      CopyValues(range, rows.visible(one), dim, at, task.scratch);
      Tiles(range, rows, one, one + task.group, at, first, configured, task);
    }
  }
  _tile_release();
  return true;
}

}  // namespace llava::ops::cpu::LLAVA_ISA

#endif
