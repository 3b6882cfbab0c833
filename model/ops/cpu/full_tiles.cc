// Attention in which every query sees all keys, by AMX, for bfloat16: keys and values become tiles
// once for a head; 32 queries at a time. Weights are rounded to bfloat16.
#include "model/ops/cpu/full_tiles.h"

#ifndef __AMX_TILE__

namespace llava::ops::cpu::LLAVA_ISA {

int64_t FullTilesScratch(const FullAttention&) { return 0; }
bool FullAttentionByTiles(const FullAttention&, float*) { return false; }

}  // namespace llava::ops::cpu::LLAVA_ISA

#else

#include "model/ops/cpu/amx_tiles.h"
#include "model/ops/cpu/transpose.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

constexpr int64_t kDepth = 32;             // that a product of tiles sums over
constexpr int64_t kRows = 2 * kTileRows;   // queries at a time
constexpr int64_t kTile = 16 * kTileRows;  // words of a tile
static_assert(kQueryBlock % kRows == 0);

constexpr int64_t Up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// In floats, or in pairs of bfloat16.
struct Layout {
  explicit Layout(const FullAttention& task)
      : depth(Up(task.head_dim, kDepth)),
        keys(Up(task.tokens, kDepth)),
        score_line(keys + kLanes),       // so that lines differ in cache sets
        weight_line(keys + 2 * kLanes),  // in bfloat16
        out_line(depth + kLanes),
        values(keys * depth / 2),
        q(values + keys * depth / 2),
        scores(q + kRows * depth / 2),
        weights(scores + kRows * score_line),
        out(weights + kRows * weight_line / 2),
        size(out + kRows * out_line) {}
  int64_t depth, keys;  // padded
  int64_t score_line, weight_line, out_line;
  int64_t values, q, scores, weights, out, size;
};

const BFloat16* Row(const ConstRows& rows, int64_t index) {
  return static_cast<const BFloat16*>(rows.data) + index * rows.stride;
}

// [16 keys][32 depths at a time] to tiles of pairs along the depth.
void PackKeys(const FullAttention& task, const Layout& at, float* scratch) {
  for (int64_t key = 0; key < at.keys; key += kTileRows) {
    for (int64_t d = 0; d < at.depth; d += kDepth) {
      Vector v[kLanes] = {};
      const int64_t pairs = (task.head_dim - d) / 2;
      for (int64_t i = 0; i < kTileRows && key + i < task.tokens; ++i) {
        // Bits only: nothing computes with them as floats.
        const auto* from = reinterpret_cast<const float*>(Row(task.k, key + i) + d);
        v[i] = pairs >= kLanes ? Load(from) : LoadPart(from, pairs);
      }
      Transpose(v);
      float* const to = scratch + (key / kTileRows * (at.depth / kDepth) + d / kDepth) * kTile;
      for (int64_t i = 0; i < kLanes; ++i) Store(to + i * kLanes, v[i]);
    }
  }
}

[[gnu::always_inline]] inline BitVector Bits(const BFloat16* from, int64_t count) {
  BFloat16 whole[kLanes] = {};
  if (count < kLanes) {
    __builtin_memcpy(whole, from, (count > 0 ? count : 0) * sizeof(BFloat16));
    from = whole;
  }
  HalfVector half;
  __builtin_memcpy(&half, from, sizeof(half));
  return __builtin_convertvector(half, BitVector);
}

// [32 tokens at a time][16 columns] to tiles of pairs along the tokens.
void PackValues(const FullAttention& task, const Layout& at, float* scratch) {
  for (int64_t token = 0; token < at.keys; token += 2) {
    for (int64_t d = 0; d < at.depth; d += kLanes) {
      BitVector pair = {};
      if (token < task.tokens) pair = Bits(Row(task.v, token) + d, task.head_dim - d);
      if (token + 1 < task.tokens) {
        pair |= Bits(Row(task.v, token + 1) + d, task.head_dim - d) << 16;
      }
      float* const to = scratch + at.values +
                        (token / kDepth * (at.depth / kLanes) + d / kLanes) * kTile +
                        token % kDepth / 2 * kLanes;
      Store(to, reinterpret_cast<Vector>(pair));
    }
  }
}

// out [16 R][32] = a [16 R][kDepth steps] times two columns of tiles of b, `b_next` the second;
// lines in bytes.
template <int R>
[[gnu::always_inline]] inline void Product(const BFloat16* a, int64_t a_line, const float* b,
                                           const float* b_next, int64_t b_step, int64_t steps,
                                           float* out, int64_t out_line) {
  const BFloat16* a1 = a + kTileRows * a_line / 2;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (R == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < steps; ++i) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, a_line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b_next, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (R == 2) {
      _tile_loadd(5, a1, a_line);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      a1 += kDepth;
    }
    a += kDepth;
    b += b_step;
    b_next += b_step;
  }
  _tile_stored(0, out, out_line);
  _tile_stored(1, out + kLanes, out_line);
  if constexpr (R == 2) {
    _tile_stored(2, out + kTileRows * out_line / 4, out_line);
    _tile_stored(3, out + kTileRows * out_line / 4 + kLanes, out_line);
  }
}

// 2^x for x <= 0 to 4e-6 of its value, at least 2^-125; NaN stays NaN.
[[gnu::always_inline]] inline Vector PowerOfTwo(Vector x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector zero = {};
  x = Max(zero - 125.0f, x);
  const Vector shifted = x + kRound;
  const Vector f = x - (shifted - kRound);
  Vector p = zero + 0.00967604f;
  p = Fused(p, f, zero + 0.05592204f);
  p = Fused(p, f, zero + 0.24022107f);
  p = Fused(p, f, zero + 0.69312103f);
  p = Fused(p, f, zero + 1.00000008f);
  return reinterpret_cast<Vector>(reinterpret_cast<BitVector>(p) +
                                  (reinterpret_cast<BitVector>(shifted) << 23));
}

// Scores of `tokens` keys to weights up to a multiple of kDepth; `scale`: of scores, times log2 e.
// Returns the sum.
float Weigh(float* scores, int64_t tokens, float scale, BFloat16* weights) {
  const Vector never = Vector{} - __builtin_inff();
  const int64_t whole = tokens / kLanes * kLanes, end = Up(tokens, kDepth);
  Vector most = never;
  for (int64_t i = 0; i < whole; i += kLanes) most = Max(most, Load(scores + i));
  if (whole < tokens) {
    const Vector v = Load(scores + whole);
    const Vector last = kLane < static_cast<int32_t>(tokens - whole) ? v : never;
    Store(scores + whole, last);
    most = Max(most, last);
  }
  const Vector factor = Vector{} + scale, offset = Vector{} - Largest(most) * scale;
  Vector total = {};
  for (int64_t i = 0; i < tokens; i += kLanes) {
    const Vector p = PowerOfTwo(Fused(Load(scores + i), factor, offset));
    total += p;
    StoreRounded(weights + i, p);
  }
  for (int64_t i = Up(tokens, kLanes); i < end; i += kLanes) StoreRounded(weights + i, Vector{});
  return Sum(total);
}

template <int R>
void Attend(const FullAttention& task, const Layout& at, int64_t first, int64_t count,
            float* scratch) {
  const int64_t dim = task.head_dim;
  auto* const q = reinterpret_cast<BFloat16*>(scratch + at.q);
  float* const scores = scratch + at.scores;
  auto* const weights = reinterpret_cast<BFloat16*>(scratch + at.weights);
  float* const out = scratch + at.out;
  for (int64_t r = 0; r < count; ++r) {
    __builtin_memcpy(q + r * at.depth, Row(task.q, first + r), dim * sizeof(BFloat16));
  }
  Written(q);
  const int64_t steps = at.depth / kDepth;
  for (int64_t key = 0; key < at.keys; key += kDepth) {
    const float* const b = scratch + key / kTileRows * steps * kTile;
    Product<R>(q, at.depth * 2, b, b + steps * kTile, kTile, steps, scores + key,
               at.score_line * 4);
  }
  Written(scores);
  const float scale = 1.44269504f / __builtin_sqrtf(static_cast<float>(dim));
  float totals[kRows];
  for (int64_t r = 0; r < count; ++r) {
    totals[r] = Weigh(scores + r * at.score_line, task.tokens, scale, weights + r * at.weight_line);
  }
  Written(weights);
  const int64_t columns = at.depth / kLanes;
  for (int64_t d = 0; d < columns; d += 2) {
    const float* const b = scratch + at.values + d * kTile;
    Product<R>(weights, at.weight_line * 2, b, b + kTile, columns * kTile, at.keys / kDepth,
               out + d * kLanes, at.out_line * 4);
  }
  Written(out);
  for (int64_t r = 0; r < count; ++r) {
    const float inverse = 1.0f / totals[r];
    BFloat16* const to = static_cast<BFloat16*>(task.out.data) + (first + r) * task.out.stride;
    for (int64_t d = 0; d < dim; d += kLanes) {
      const Vector v = Load(out + r * at.out_line + d) * inverse;
      if (d + kLanes <= dim) {
        StoreRounded(to + d, v);
      } else {
        StorePart(to + d, v, dim - d);
      }
    }
  }
}

}  // namespace

int64_t FullTilesScratch(const FullAttention& task) {
  return task.element == Element::kBFloat16 && task.head_dim % 2 == 0 ? Layout(task).size : 0;
}

bool FullAttentionByTiles(const FullAttention& task, float* scratch) {
  if (FullTilesScratch(task) == 0) return false;
  const Layout at(task);
  PackKeys(task, at, scratch);
  PackValues(task, at, scratch);
  // Rows and depths that are not there: zeros, or what earlier queries left, which nobody reads.
  __builtin_memset(scratch + at.q, 0, kRows * at.depth * sizeof(BFloat16));
  __builtin_memset(scratch + at.weights, 0, kRows * at.weight_line * sizeof(BFloat16));
  Configure(kTileRows, 2 * kDepth);
  const int64_t end = task.first + task.count;
  for (int64_t i = task.first; i < end; i += kRows) {
    const int64_t count = end - i < kRows ? end - i : kRows;
    count > kTileRows ? Attend<2>(task, at, i, count, scratch)
                      : Attend<1>(task, at, i, count, scratch);
  }
  _tile_release();
  return true;
}

}  // namespace llava::ops::cpu::LLAVA_ISA

#endif
