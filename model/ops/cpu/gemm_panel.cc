// Products of rows with one panel of weights, by dot-product instructions.
//
// Rows go kMostRows at a time: their sums of one group (of one block in bfloat16) stay in
// registers. Between groups sums are floats in memory. Every row is summed in the same order
// however many there are. The first rows wait for the memory; while the second ones find the same
// weights in the cache, those of the next group are fetched.
#include "model/ops/cpu/gemm_simd.h"
#include "model/ops/cpu/gemm_tiles.h"
#include "model/ops/cpu/isa_kernels.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

// So many rows pass through a group before the next one: their sums stay in the first cache.
constexpr int64_t kRowsAtOnce = 64;

// Four and four weights along K of a panel's 32 rows.
template <bool kNibbles>
struct Octet;
template <>
struct Octet<false> {
  static constexpr int64_t kBytes = 8 * kPanel;
  WeightQuads low[kVectors], high[kVectors];
  [[gnu::always_inline]] explicit Octet(const uint8_t* at) {
    for (int v = 0; v < kVectors; ++v) {
      low[v] = Split(LoadAs<Words>(at + v * sizeof(Words)));
      high[v] = Split(LoadAs<Words>(at + 4 * kPanel + v * sizeof(Words)));
    }
  }
};
template <>
struct Octet<true> {
  static constexpr int64_t kBytes = 4 * kPanel;
  WeightQuads low[kVectors], high[kVectors];
  [[gnu::always_inline]] explicit Octet(const uint8_t* at) {
    for (int v = 0; v < kVectors; ++v) {
      const Words both = LoadAs<Words>(at + v * sizeof(Words));
      low[v] = Split(both & 0x0F0F0F0F);
      high[v] = Split(both >> 4 & 0x0F0F0F0F);
    }
  }
};

// What a group of one block of rows needs.
struct GroupTask {
  const uint8_t* block;  // scales and weights
  BlockValues values;
  const float* scales;
  const int32_t* corrections;
  float* sums;
  bool first;
};

template <int R, bool kNibbles, bool kFetchNext>
[[gnu::always_inline]] inline void MultiplyGroup(const GroupTask& task, int64_t group) {
  constexpr int64_t kBytes = Octet<kNibbles>::kBytes;
  // A second set of sums where one would be a chain too short to keep the units busy.
  constexpr int kSets = R * kVectors <= 4 ? 2 : 1;
  // Every loop over them is unrolled at once: else GCC 12 stores them in each turn.
  Ints dots[kSets][R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      dots[0][r][v] = Ints{} + task.corrections[r];
      if (kSets == 2) dots[kSets - 1][r][v] = Ints{};
    }
  }
  const uint8_t* weights = task.block + kScaleBytes;
  FetchAhead(task.block + kAhead, kScaleBytes);
  const BlockValues& x = task.values;
  const uint8_t* values = x.data;
  for (int64_t unit = 0; unit < group; unit += x.unit, values += x.step) {
    for (int64_t k = 0; k < x.unit; k += 8, weights += kBytes) {
      FetchAhead(weights + kAhead, kBytes);
      if constexpr (kFetchNext) Fetch(weights + group / 8 * kBytes + kScaleBytes, kBytes);
      const Octet<kNibbles> octet(weights);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Quad low = Spread(values + r * x.line + k);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) dots[0][r][v] = AddDot(dots[0][r][v], octet.low[v], low);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Quad high = Spread(values + r * x.line + k + 4);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          dots[kSets - 1][r][v] = AddDot(dots[kSets - 1][r][v], octet.high[v], high);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const Floats of_weights = LoadScales(task.block, v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Ints dot = dots[0][r][v];
      if (kSets == 2) dot += dots[1][r][v];
      float* to = task.sums + r * kPanel + v * kColumns;
      const Floats part = __builtin_convertvector(dot, Floats) * (of_weights * task.scales[r]);
      StoreAs(to, task.first ? part : LoadAs<Floats>(to) + part);
    }
  }
}

// Adds the products of `depth` values along K to sums that stay in registers meanwhile.
template <WeightFormat kFormat, int R, bool kFetchNext>
[[gnu::always_inline]] inline void MultiplyBlock(const uint8_t* weights, const BlockValues& x,
                                                 int64_t depth, bool first, float* sums) {
  constexpr int64_t kBytes = ValueBytes(kFormat);
  Floats sum[R][kVectors] = {};
  if (!first) {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < kVectors; ++v)
        sum[r][v] = LoadAs<Floats>(sums + r * kPanel + v * kColumns);
    }
  }
  const uint8_t* values = x.data;
  for (int64_t left = depth * kBytes; left > 0; left -= x.unit, values += x.step) {
    const int64_t unit = left < x.unit ? left : x.unit;
    // Four bytes of a row with four bytes of each row of W.
    for (int64_t at = 0; at < unit; at += 4, weights += 4 * kPanel) {
      FetchAhead(weights + kAhead, 4 * kPanel);
      if constexpr (kFetchNext) Fetch(weights + depth * kBytes * kPanel, 4 * kPanel);
      if constexpr (kFormat == WeightFormat::kFloat) {
        Floats w[kVectors];
        for (int v = 0; v < kVectors; ++v) w[v] = LoadAs<Floats>(weights + v * sizeof(Floats));
        for (int r = 0; r < R; ++r) {
          const Floats value = Floats{} + LoadAs<float>(values + r * x.line + at);
          for (int v = 0; v < kVectors; ++v) sum[r][v] = MultiplyAdd(w[v], value, sum[r][v]);
        }
      } else {
        WeightPairs pairs[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          pairs[v] = SplitPairs(LoadAs<Words>(weights + v * sizeof(Words)));
        }
        for (int r = 0; r < R; ++r) {
          const Pair pair = SpreadPair(values + r * x.line + at);
          for (int v = 0; v < kVectors; ++v) sum[r][v] = AddDot(sum[r][v], pairs[v], pair);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) StoreAs(sums + r * kPanel + v * kColumns, sum[r][v]);
  }
}

// Calls work<R, false>(first row) for all rows, in blocks of R <= kMostRows; for the second block
// work<R, true>.
template <int R = kMostRows, typename Work>
[[gnu::always_inline]] inline void ForRowBlocks(int64_t begin, int64_t end, const Work& work,
                                                int64_t second = -1) {
  constexpr bool kMayFetch = kAhead == 0 && kMostRows > 1;
  if (second < 0) second = begin + kMostRows;
  for (; begin + R <= end; begin += R) {
    if (kMayFetch && begin == second) {
      work.template operator()<R, kMayFetch>(begin);
    } else {
      work.template operator()<R, false>(begin);
    }
  }
  if constexpr (R > 1) {
    if (begin < end) ForRowBlocks<R - 1>(begin, end, work, second);
  }
}

template <bool kNibbles>
void MultiplyIntegers(const PanelTask& task) {
  const PackedLayout& layout = *task.layout;
  const Activations& x = *task.activations;
  for (int64_t row = 0; row < task.rows; row += kRowsAtOnce) {
    const int64_t end = row + kRowsAtOnce < task.rows ? row + kRowsAtOnce : task.rows;
    for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
      const int64_t line = b * x.rows + task.first_row;
      ForRowBlocks(row, end, [&]<int R, bool kFetchNext>(int64_t first) {
        const GroupTask group{task.panel + b * layout.block_bytes,
                              ValuesOf(x, task.first_row + first, b, layout.block),
                              x.scales + line + first,
                              x.corrections + line + first,
                              task.sums + first * kPanel,
                              b == 0};
        MultiplyGroup<R, kNibbles, kFetchNext>(group, layout.block);
      });
    }
  }
}

template <WeightFormat kFormat>
void MultiplyWhole(const PanelTask& task) {
  constexpr int64_t kBytes = ValueBytes(kFormat);
  const PackedLayout& layout = *task.layout;
  const Activations& x = *task.activations;
  for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
    const int64_t begin = b * layout.block;
    const int64_t left = layout.padded_depth - begin;
    const int64_t depth = left < layout.block ? left : layout.block;
    const uint8_t* weights = task.panel + begin * kPanel * kBytes;
    ForRowBlocks(0, task.rows, [&]<int R, bool kFetchNext>(int64_t first) {
      MultiplyBlock<kFormat, R, kFetchNext>(
          weights, ValuesOf(x, task.first_row + first, b, layout.block * kBytes), depth, b == 0,
          task.sums + first * kPanel);
    });
  }
}

}  // namespace

void MultiplyPanel(const PanelTask& task) {
  if (MultiplyPanelByTiles(task)) return;
  switch (task.layout->format) {
    case WeightFormat::kBFloat16:
      return MultiplyWhole<WeightFormat::kBFloat16>(task);
    case WeightFormat::kFloat:
      return MultiplyWhole<WeightFormat::kFloat>(task);
    case WeightFormat::kInt8:
      return MultiplyIntegers<false>(task);
    case WeightFormat::kInt4:
      return MultiplyIntegers<true>(task);
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
