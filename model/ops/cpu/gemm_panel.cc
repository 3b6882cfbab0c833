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

// Eight weights along K of a panel's 32 rows: four and four.
template <bool kNibbles>
constexpr int64_t kOctetBytes = (kNibbles ? 4 : 8) * kPanel;

// Those of the vector `v`.
template <bool kNibbles, bool kHigh>
[[gnu::always_inline]] inline auto LoadQuads(const uint8_t* octet, int v) {
  const uint8_t* const at = octet + v * sizeof(Words);
  if constexpr (kNibbles) {
    const Words both = LoadAs<Words>(at);
    return SplitNibbles((kHigh ? both >> 4 : both) & 0x0F0F0F0F);
  } else {
    return Split(LoadAs<Words>(at + (kHigh ? 4 * kPanel : 0)));
  }
}

// What a group of one block of rows needs.
struct GroupTask {
  const uint8_t* block;  // scales and weights
  BlockValues values;
  const float* scales;
  const int32_t* corrections;
  float* sums;
  bool first;
};

// Vectors [kFirst, kFirst + Together(R)) of the panel.
template <int R, int kFirst, bool kNibbles, bool kFetchNext>
[[gnu::always_inline]] inline void MultiplyVectors(const GroupTask& task, int64_t group) {
  constexpr int64_t kBytes = kOctetBytes<kNibbles>;
  constexpr int V = Together(R);
  // A second set of sums where one would be a chain too short to keep the units busy.
  constexpr int kSets = R * V <= 4 ? 2 : 1;
  // Every loop over them is unrolled at once: else GCC 12 stores them in each turn.
  Ints dots[kSets][R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      dots[0][r][v] = Ints{} + (kOffsetTaken && !kNibbles ? 0 : task.corrections[r]);
      if (kSets == 2) dots[kSets - 1][r][v] = Ints{};
    }
  }
  const uint8_t* weights = task.block + kScaleBytes;
  if constexpr (kFirst == 0) FetchAhead(task.block + kAhead, kScaleBytes);
  const BlockValues& x = task.values;
  const uint8_t* values = x.data;
  const auto add = [&]<bool kHigh>(int64_t k) {
    // The fewer of both stay in registers meanwhile.
    const auto dot = [&](int r, int v, const auto& quads, const Quad& quad) {
      Ints& sum = dots[kHigh ? kSets - 1 : 0][r][v];
      sum = AddDot(sum, quads, quad);
    };
    const auto load = [&](int v) { return LoadQuads<kNibbles, kHigh>(weights, kFirst + v); };
    const auto spread = [&](int r) { return Spread(values + r * x.line + k + (kHigh ? 4 : 0)); };
    if constexpr (R < V) {
      Quad quads[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) quads[r] = spread(r);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const auto loaded = load(v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) dot(r, v, loaded, quads[r]);
      }
    } else {
      decltype(load(0)) loaded[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) loaded[v] = load(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Quad quad = spread(r);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) dot(r, v, loaded[v], quad);
      }
    }
  };
  for (int64_t unit = 0; unit < group; unit += x.unit, values += x.step) {
    for (int64_t k = 0; k < x.unit; k += 8, weights += kBytes) {
      if constexpr (kFirst == 0) {
        FetchAhead(weights + kAhead, kBytes);
        if constexpr (kFetchNext) Fetch(weights + group / 8 * kBytes + kScaleBytes, kBytes);
      }
      add.template operator()<false>(k);
      add.template operator()<true>(k);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const Floats of_weights = LoadScales(task.block, kFirst + v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Ints dot = dots[0][r][v];
      if (kSets == 2) dot += dots[1][r][v];
      float* to = task.sums + r * kPanel + (kFirst + v) * kColumns;
      const Floats part = __builtin_convertvector(dot, Floats) * (of_weights * task.scales[r]);
      StoreAs(to, task.first ? part : LoadAs<Floats>(to) + part);
    }
  }
}

template <int R, bool kNibbles, bool kFetchNext, int kFirst = 0>
[[gnu::always_inline]] inline void MultiplyGroup(const GroupTask& task, int64_t group) {
  MultiplyVectors<R, kFirst, kNibbles, kFetchNext>(task, group);
  if constexpr (kFirst + Together(R) < kVectors) {
    MultiplyGroup<R, kNibbles, kFetchNext, kFirst + Together(R)>(task, group);
  }
}

// Adds the products of `depth` values along K to sums that stay in registers meanwhile. Vectors
// from kFirst on.
// Its loops are those of MultiplyVectors again: handed to a function, GCC 12 stores the sums.
template <WeightFormat kFormat, int R, bool kFetchNext, int kFirst = 0>
[[gnu::always_inline]] inline void MultiplyBlock(const uint8_t* weights, const BlockValues& x,
                                                 int64_t depth, bool first, float* sums) {
  constexpr int64_t kBytes = ValueBytes(kFormat);
  constexpr int V = Together(R);
  const auto cell = [&](int r, int v) { return sums + r * kPanel + (kFirst + v) * kColumns; };
  Floats sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = first ? Floats{} : LoadAs<Floats>(cell(r, v));
  }
  const uint8_t* values = x.data;
  const uint8_t* from = weights;
  for (int64_t left = depth * kBytes; left > 0; left -= x.unit, values += x.step) {
    const int64_t unit = left < x.unit ? left : x.unit;
    // Four bytes of a row with four bytes of each row of W.
    for (int64_t at = 0; at < unit; at += 4, from += 4 * kPanel) {
      if constexpr (kFirst == 0) {
        FetchAhead(from + kAhead, 4 * kPanel);
        if constexpr (kFetchNext) Fetch(from + depth * kBytes * kPanel, 4 * kPanel);
      }
      if constexpr (kFormat == WeightFormat::kFloat) {
        Floats w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) w[v] = LoadAs<Floats>(from + (kFirst + v) * sizeof(Floats));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Floats value = Floats{} + LoadAs<float>(values + r * x.line + at);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[r][v] = MultiplyAdd(w[v], value, sum[r][v]);
        }
      } else {
        const auto load = [&](int v) {
          return SplitPairs(LoadAs<Words>(from + (kFirst + v) * sizeof(Words)));
        };
        const auto spread = [&](int r) { return SpreadPair(values + r * x.line + at); };
        // The fewer of both stay in registers meanwhile.
        if constexpr (R < V) {
          Pair pairs[R];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) pairs[r] = spread(r);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const WeightPairs loaded = load(v);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[r][v] = AddDot(sum[r][v], loaded, pairs[r]);
          }
        } else {
          WeightPairs loaded[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) loaded[v] = load(v);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const Pair pair = spread(r);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = AddDot(sum[r][v], loaded[v], pair);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) StoreAs(cell(r, v), sum[r][v]);
  }
  if constexpr (kFirst + V < kVectors) {
    MultiplyBlock<kFormat, R, kFetchNext, kFirst + V>(weights, x, depth, first, sums);
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

// The same for few rows in smaller blocks, which read the weights in order.
template <typename Work>
[[gnu::always_inline]] inline void ForRows(int64_t begin, int64_t end, const Work& work) {
  if constexpr (kMostRows == 4) {
    if (end - begin < 8) return ForRowBlocks<2>(begin, end, work);
  }
  ForRowBlocks(begin, end, work);
}

template <bool kNibbles>
void MultiplyIntegers(const PanelTask& task) {
  const PackedLayout& layout = *task.layout;
  const Activations& x = *task.activations;
  for (int64_t row = 0; row < task.rows; row += kRowsAtOnce) {
    const int64_t end = row + kRowsAtOnce < task.rows ? row + kRowsAtOnce : task.rows;
    for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
      const int64_t line = b * x.rows + task.first_row;
      ForRows(row, end, [&]<int R, bool kFetchNext>(int64_t first) {
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
    ForRows(0, task.rows, [&]<int R, bool kFetchNext>(int64_t first) {
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
