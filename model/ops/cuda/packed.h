#pragma once

// Bodies of the kernels for packed integer weights: a product of few rows, and unpacking. See
// block.h, and PackedWeights in kernels.h.
//
// 512 bytes of a panel, a chunk, are its 32 rows over 16 (int8) or 32 (int4) of the depth. A warp
// takes a chunk with one load of 16 bytes a lane, which are four neighbouring rows over four or
// eight k: just what the lane owes the matrix unit, with rows and k in an order of our own. The
// integers are exact in bfloat16, and the scale is applied to the sums, so no weight is rounded.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/rows.h"

namespace llava::cuda {

inline constexpr int kChunkBytes = 512;
inline constexpr int kPanelScaleBytes = kPanelRows * 2;
// Panels that a GPU has a multiprocessor each for.
inline constexpr int kFewPanels = 160;

LLAVA_DEVICE int ChunkDepth(bool int4) { return int4 ? 32 : 16; }

// Where the chunks and scales of a matrix lie.
struct PanelPlan {
  int chunk_depth, chunks;  // of a panel
  int shift;                // log2 of the chunks of a group
  int group_bytes;
  int64_t panel_bytes;

  LLAVA_DEVICE explicit PanelPlan(const PackedWeights& weight)
      : chunk_depth(ChunkDepth(weight.int4)) {
    const int groups = (weight.depth + weight.group - 1) / weight.group;
    const int in_group = weight.group / chunk_depth;
    chunks = groups * in_group;
    shift = in_group == 1 ? 0 : in_group == 2 ? 1 : in_group == 4 ? 2 : 3;
    group_bytes = kPanelScaleBytes + in_group * kChunkBytes;
    panel_bytes = static_cast<int64_t>(groups) * group_bytes;
  }
  // From the beginning of a panel.
  LLAVA_DEVICE int Scales(int chunk) const { return (chunk >> shift) * group_bytes; }
  LLAVA_DEVICE int Values(int chunk) const {
    return Scales(chunk) + kPanelScaleBytes + (chunk & ((1 << shift) - 1)) * kChunkBytes;
  }
};

// Four bytes, each a weight + 128, as pairs of bfloat16: weights 0 and 1, 2 and 3.
LLAVA_DEVICE Array<uint32_t, 2> WidenBytes(uint32_t bytes) {
  Array<uint32_t, 2> pairs;
  LLAVA_UNROLL
  for (int i = 0; i < 2; ++i) {
    // 2^23 + byte as float, less 2^23 + 128: at most eight bits are left, the upper half has all.
    const float low = FloatOf(Bytes(bytes, 0x4b000000u, 0x7440u + 2 * i)) - 8388736.0f;
    const float high = FloatOf(Bytes(bytes, 0x4b000000u, 0x7441u + 2 * i)) - 8388736.0f;
    pairs[i] = Bytes(BitsOf(low), BitsOf(high), 0x7632);
  }
  return pairs;
}

// Eight nibbles, each a weight + 8, weights 0 to 3 the low halves of the bytes and 4 to 7 the high
// ones: weights 0 and 1, 2 and 3, 4 and 5, 6 and 7, the pairs of x as it lies.
LLAVA_DEVICE Array<uint32_t, 4> WidenNibbles(uint32_t nibbles) {
  Array<uint32_t, 4> pairs;
  LLAVA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t two = Bytes(nibbles, 0, i == 0 ? 0x4140 : 0x4342);
    LLAVA_UNROLL
    for (int half = 0; half < 2; ++half) {
      // 128 + nibble in bfloat16, less 136.
      pairs[2 * half + i] =
          AddPairs(MaskAndSet<0x000f000fu, 0x43004300u>(two >> 4 * half), 0xc308c308u);
    }
  }
  return pairs;
}

// What a lane owes the matrix unit of its 16 bytes of a chunk, `a` [8 or 16]: words are rows 4 g
// ... 4 g + 3, which become rows g and g + 8 of the first half and of the second.
template <bool kInt4>
LLAVA_DEVICE void WidenChunk(const Vector<uint32_t, 4>& words, uint32_t* a) {
  LLAVA_UNROLL
  for (int j = 0; j < 4; ++j) {
    if constexpr (kInt4) {
      const Array<uint32_t, 4> pairs = WidenNibbles(words[j]);
      LLAVA_UNROLL
      for (int i = 0; i < 4; ++i) a[i / 2 * 8 + j / 2 * 4 + i % 2 * 2 + j % 2] = pairs[i];
    } else {
      const Array<uint32_t, 2> pairs = WidenBytes(words[j]);
      LLAVA_UNROLL
      for (int i = 0; i < 2; ++i) a[j / 2 * 4 + i * 2 + j % 2] = pairs[i];
    }
  }
}

// The same for a row of x, the values that belong to those weights: `b` [2 or 4].
template <bool kInt4>
LLAVA_DEVICE void TakeRow(const BFloat16* from, uint32_t* b) {
  const auto words = Load < kInt4 ? 4 : 2 > (reinterpret_cast<const uint32_t*>(from));
  LLAVA_UNROLL
  for (int i = 0; i < (kInt4 ? 4 : 2); ++i) b[i] = words[i];
}

// `kTiles` times eight rows of x, `kPanels` panels a block.
template <int kTiles, int kPanels, int kThreads>
struct PackedShared {
  static constexpr int kWarps = kThreads / kWarpLanes;
  static constexpr int kSums = 8 * kTiles;  // of a lane
  // Sums of half of the warps by lane, later the product [panels][rows of x][32].
  float cells[kWarps / 2 * kSums * kWarpLanes];
  static_assert(kWarps / 2 >= kPanels, "the product has room");
};

// Grid (panels of the result / kPanels x parts of the rows). Gated, the second panel is the unit of
// the first. `kUnit` chunks, which must be of one group, are summed before the scale is applied. A
// row does not depend on what its neighbours are; up to 16 of them, not on how many either.
template <bool kInt4, int kUnit, int kTiles, int kPanels, class Block>
LLAVA_DEVICE void PackedProductBody(Block& block,
                                    PackedShared<kTiles, kPanels, Block::kThreads>& shared,
                                    const PackedProductArgs& args) {
  using Shared = PackedShared<kTiles, kPanels, Block::kThreads>;
  constexpr int kSplit = Shared::kWarps / kPanels;      // warps that share a panel
  constexpr int kUnroll = kTiles <= 2 ? 4 / kUnit : 2;  // units whose loads are under way
  constexpr int kChunkDepth = kInt4 ? 32 : 16;
  constexpr int kSteps = kInt4 ? 2 : 1;       // of a chunk
  constexpr int kPairs = 2 * kSteps * kUnit;  // of a row of x that a lane owes a unit
  const PackedWeights& weight = args.weight;
  const PanelPlan plan(weight);
  const int panels = (weight.rows + kPanelRows - 1) / kPanelRows;
  // Blocks of the same panels, for eight times kTiles rows each, are neighbours: the second finds
  // the weights in a cache.
  constexpr int kRows = 8 * kTiles;
  const int parts = kTiles < 4 ? 1 : (args.rows + kRows - 1) / kRows;
  const int place = block.x() / parts, first_row = block.x() % parts * kRows;
  const int rows = args.rows - first_row < kRows ? args.rows - first_row : kRows;
  const auto* const x =
      static_cast<const BFloat16*>(args.x) + static_cast<int64_t>(first_row) * weight.depth;

  // The number of the `p`-th panel of this block; the last block may have fewer than kPanels.
  const auto panel_of = [&](int p) {
    return args.gated ? place + p * (panels / 2) : place * kPanels + p;
  };
  const auto panel_at = [&](int p) {
    const int panel = panel_of(p);
    return weight.panels + (panel < panels ? panel : panels - 1) * plan.panel_bytes;
  };

  struct Units {
    Vector<uint32_t, 4> words[kUnroll * kUnit];
    Vector<BFloat16, 4> scales[kUnroll];
  };
  // The first chunk of a unit. Units that follow each other go to the warps of a panel in turn.
  const auto chunk_of = [&](int thread, int round, int u) {
    return (thread / kWarpLanes / kPanels + (round * kUnroll + u) * kSplit) * kUnit;
  };
  const auto load = [&](int thread, int round, Units& units) {
    const uint8_t* const panel = panel_at(thread / kWarpLanes % kPanels);
    const int g = thread % kWarpLanes / 4, t = thread % 4;
    LLAVA_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const int chunk = chunk_of(thread, round, u);
      const bool there = chunk < plan.chunks;
      LLAVA_UNROLL
      for (int c = 0; c < kUnit; ++c) {
        const uint8_t* const from = panel + plan.Values(chunk + c) + t * 128 + g * 16;
        units.words[u * kUnit + c] = {};
        if (there) {
          units.words[u * kUnit + c] = LoadOnce<4>(reinterpret_cast<const uint32_t*>(from));
        }
      }
      const uint8_t* const scales = panel + plan.Scales(chunk) + g * 8;
      units.scales[u] = {};
      if (there) units.scales[u] = Load<4>(reinterpret_cast<const BFloat16*>(scales));
    }
  };

  // The rows of x for a unit. Without a branch, so that all loads are under way together; rows
  // beyond the last make columns that nobody reads.
  using Taken = Array<uint32_t, kTiles * kPairs>;
  const auto take = [&](int thread, int round, int u, Taken& to_rows) {
    LLAVA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = tile * 8 + thread % kWarpLanes / 4;
      const BFloat16* const from =
          x + static_cast<int64_t>(row < rows ? row : rows - 1) * weight.depth;
      LLAVA_UNROLL
      for (int c = 0; c < kUnit; ++c) {
        const int k = (chunk_of(thread, round, u) + c) * kChunkDepth + thread % 4 * 4 * kSteps;
        const bool there = k < weight.depth;
        uint32_t* const to = to_rows.values + tile * kPairs + 2 * kSteps * c;
        TakeRow<kInt4>(from + (there ? k : 0), to);
        LLAVA_UNROLL
        for (int i = 0; i < 2 * kSteps; ++i) to[i] = there ? to[i] : 0;
      }
    }
  };

  typename Block::template PerThread<Units> now, next;
  typename Block::template PerThread<Taken> taken, coming;
  typename Block::template PerThread<Array<float, Shared::kSums>> sums;
  block.Each([&](int thread) {
    load(thread, 0, now[thread]);
    // Where all panels are under way at once, behind attention as a rule: all that is left of them.
    const int64_t most = panels <= kFewPanels ? 96 << 10 : Block::kThreads * 128;
    const int64_t end_ahead = plan.panel_bytes < most ? plan.panel_bytes : most;
    for (int64_t ahead = static_cast<int64_t>(thread) * 128; ahead < end_ahead;
         ahead += Block::kThreads * 128) {
      PrefetchLine(panel_at(0) + ahead);
    }
    if (thread < kPanels && panel_of(thread) < panels) {
      const int n = panel_of(thread) * kPanelRows;
      const int first = weight.first[n];
      const int end = weight.first[n + kPanelRows < weight.rows ? n + kPanelRows : weight.rows];
      if (first < end) PrefetchLine(weight.apart + first);
    }
    LLAVA_UNROLL
    for (int i = 0; i < Shared::kSums; ++i) sums[thread][i] = 0;
  });
  block.AwaitEarlier();
  block.Each([&](int thread) { take(thread, 0, 0, taken[thread]); });

  const int rounds = (plan.chunks + kUnroll * kUnit * kSplit - 1) / (kUnroll * kUnit * kSplit);
  for (int round = 0; round < rounds; ++round) {
    block.Each([&](int thread) { load(thread, round + 1, next[thread]); });
    LLAVA_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      typename Block::template PerThread<Array<uint32_t, 8 * kSteps * kUnit>> a;
      block.Each([&](int thread) {
        take(thread, round, u + 1, coming[thread]);
        LLAVA_UNROLL
        for (int c = 0; c < kUnit; ++c) {
          WidenChunk<kInt4>(now[thread].words[u * kUnit + c], a[thread].values + 8 * kSteps * c);
        }
      });
      LLAVA_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        typename Block::template PerThread<Array<uint32_t, kPairs>> b;
        typename Block::template PerThread<Array<float, 8>> product;
        block.Each([&](int thread) {
          LLAVA_UNROLL
          for (int i = 0; i < kPairs; ++i) b[thread][i] = taken[thread][tile * kPairs + i];
        });
        block.template Multiply<kSteps * kUnit>(product, a, b);
        block.Each([&](int thread) {
          LLAVA_UNROLL
          for (int i = 0; i < 8; ++i) {
            sums[thread][tile * 8 + i] +=
                product[thread][i] * ToFloat(now[thread].scales[u][i / 2]);
          }
        });
      }
      block.Each([&](int thread) { taken[thread] = coming[thread]; });
    }
    block.Each([&](int thread) { now[thread] = next[thread]; });
  }

  // Pairs of warps, until one of each panel has all.
  LLAVA_UNROLL
  for (int half = kSplit / 2; half > 0; half /= 2) {
    const auto cell = [&](int warp, int thread, int i) -> float& {
      return shared.cells[(warp * Shared::kSums + i) * kWarpLanes + thread % kWarpLanes];
    };
    block.Each([&](int thread) {
      const int warp = thread / kWarpLanes - half * kPanels;
      if (warp < 0 || warp >= half * kPanels) return;
      LLAVA_UNROLL
      for (int i = 0; i < Shared::kSums; ++i) cell(warp, thread, i) = sums[thread][i];
    });
    block.Sync();
    block.Each([&](int thread) {
      const int warp = thread / kWarpLanes;
      if (warp >= half * kPanels) return;
      LLAVA_UNROLL
      for (int i = 0; i < Shared::kSums; ++i) sums[thread][i] += cell(warp, thread, i);
    });
    block.Sync();
  }
  const auto product = [&](int p, int row, int column) -> float& {
    return shared.cells[(p * 8 * kTiles + row) * kPanelRows + column];
  };
  block.Each([&](int thread) {
    const int p = thread / kWarpLanes;
    if (p >= kPanels) return;
    const int g = thread % kWarpLanes / 4, t = thread % 4;
    LLAVA_UNROLL
    for (int i = 0; i < Shared::kSums; ++i) {
      product(p, i / 8 * 8 + 2 * t + i % 2, 4 * g + i % 8 / 2) = sums[thread][i];
    }
  });
  block.Sync();

  // With what was kept apart.
  const auto whole = [&](int p, int row, int column) {
    float sum = product(p, row, column);
    const int n = panel_of(p) * kPanelRows + column;
    for (int i = weight.first[n]; i < weight.first[n + 1]; ++i) {
      const PackedWeights::Apart apart = weight.apart[i];
      sum += apart.value * ToFloat(x[static_cast<int64_t>(row) * weight.depth + apart.k]);
    }
    return FromFloat<BFloat16>(sum);
  };
  const int width = args.gated ? weight.rows / 2 : weight.rows;
  auto* const out = static_cast<BFloat16*>(args.out) + static_cast<int64_t>(first_row) * width;
  block.Each([&](int thread) {
    const int results = args.gated ? 1 : kPanels;
    for (int item = thread; item < results * rows * kPanelRows; item += Block::kThreads) {
      const int column = item % kPanelRows, row = item / kPanelRows % rows;
      const int p = item / kPanelRows / rows;
      const int n = panel_of(p) * kPanelRows + column;
      if (n >= width) continue;
      BFloat16& to = out[static_cast<int64_t>(row) * width + n];
      to = args.gated ? Gate(whole(0, row, column), whole(kPanels - 1, row, column))
                      : whole(p, row, column);
    }
  });
}

inline constexpr int kUnpackDepth = 256;  // of a block

// Grid (panels, depth / kUnpackDepth). A thread makes eight values that lie together.
template <class T, bool kInt4, class Block>
LLAVA_DEVICE void UnpackBody(Block& block, const PackedWeights& weight, void* out) {
  const PanelPlan plan(weight);
  const uint8_t* const panel = weight.panels + block.x() * plan.panel_bytes;
  const int begin = block.y() * kUnpackDepth;
  const int end = begin + kUnpackDepth < weight.depth ? begin + kUnpackDepth : weight.depth;
  T* const rows =
      static_cast<T*>(out) + static_cast<int64_t>(block.x()) * kPanelRows * weight.depth;
  block.AwaitEarlier();
  block.Each([&](int thread) {
    constexpr int kEights = kUnpackDepth / 8;
    for (int item = thread; item < kEights * kPanelRows; item += Block::kThreads) {
      const int row = item / kEights, k = begin + item % kEights * 8;
      if (k >= end || block.x() * kPanelRows + row >= weight.rows) continue;
      const int chunk = k / plan.chunk_depth;
      const float scale =
          ToFloat(reinterpret_cast<const BFloat16*>(panel + plan.Scales(chunk))[row]);
      // The words of 32 rows lie beside each other, over four or eight k.
      const auto* const words = reinterpret_cast<const uint32_t*>(panel + plan.Values(chunk)) +
                                k % plan.chunk_depth / (kInt4 ? 8 : 4) * kPanelRows + row;
      Vector<T, 8> values;
      LLAVA_UNROLL
      for (int j = 0; j < 8; ++j) {
        const uint32_t word = words[kInt4 ? 0 : j / 4 * kPanelRows];
        const int integer = kInt4 ? static_cast<int>(word >> (j % 4 * 8 + j / 4 * 4) & 15) - 8
                                  : static_cast<int>(word >> j % 4 * 8 & 255) - 128;
        values[j] = FromFloat<T>(static_cast<float>(integer) * scale);
      }
      T* const to = rows + static_cast<int64_t>(row) * weight.depth + k;
      if (weight.depth % 8 == 0) {
        Store(to, values);
      } else {
        for (int j = 0; j < 8 && k + j < end; ++j) to[j] = values[j];
      }
    }
  });
  block.Sync();
  block.Each([&](int thread) {
    constexpr int kEach = Block::kThreads / kPanelRows;  // threads of a row
    const int row = thread % kPanelRows, n = block.x() * kPanelRows + row;
    if (n >= weight.rows) return;
    for (int i = weight.first[n] + thread / kPanelRows; i < weight.first[n + 1]; i += kEach) {
      const PackedWeights::Apart apart = weight.apart[i];
      if (apart.k < begin || apart.k >= end) continue;
      rows[static_cast<int64_t>(row) * weight.depth + apart.k] = FromFloat<T>(apart.value);
    }
  });
}

}  // namespace llava::cuda
