#pragma once

// Bodies of the product of many rows (17 to 64) with packed integer weights. See block.h, and
// packed.h for chunks and panels.
//
// A block has four panels and all rows of x over a slice of the depth, and takes both through
// shared memory in stages of kStageDepth, copied while the stages before are computed. So a weight
// is widened once and x is read by few blocks. Two warps share a panel, each with half of a stage's
// depth. The slices are added up, in order, by a second kernel, which finishes the product.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/packed.h"
#include "model/ops/cuda/rows.h"

namespace llava::cuda {

inline constexpr int kTilePanels = 4;
inline constexpr int kStageDepth = 64;
inline constexpr int kTileStages = 4;  // in shared memory
inline constexpr int kTileThreads = 2 * kTilePanels * kWarpLanes;

// 16 bytes.
using Piece = Vector<uint32_t, 4>;

template <bool kInt4, int kTiles>
struct PackedTilesShared {
  static constexpr int kRows = 8 * kTiles;
  static constexpr int kUnits = kStageDepth / 8;                   // pieces of a row of x
  static constexpr int kChunks = kStageDepth / (kInt4 ? 32 : 16);  // of a panel
  static constexpr int kScalePieces = kPanelScaleBytes / 16;
  // Of a stage, which all threads have as many to copy of: the compiler is to know that.
  static constexpr int kValuePieces = kTilePanels * kChunks * kWarpLanes;
  static constexpr int kRowPieces = kRows * kUnits;
  static_assert(kValuePieces % kTileThreads == 0 && kRowPieces % kTileThreads == 0);
  struct Stage {
    Piece x[kRows][kUnits];                          // pieces of a row in an order of their own
    Piece values[kTilePanels][kChunks][kWarpLanes];  // by the lane that takes them
    Piece scales[kTilePanels][2][kScalePieces];      // of each half
  };
  union {
    Stage stages[kTileStages];
    // Sums of the second half of each panel, by lane.
    float cells[kTilePanels][kRows][kWarpLanes];
  };
  // Where the piece `unit` of a row lies: such that lanes that read together meet no bank twice.
  LLAVA_DEVICE static int Place(int row, int unit) {
    return unit ^ (kInt4 ? (row & 1) * 4 : (row & 3) * 2);
  }
};

// Grid (panels / kTilePanels, slices). Writes the sums of slice s to partial [slices, rows, 32
// panels].
template <bool kInt4, int kTiles, class Block>
LLAVA_DEVICE void PackedTilesBody(Block& block, PackedTilesShared<kInt4, kTiles>& shared,
                                  const PackedProductArgs& args, float* partial) {
  using Shared = PackedTilesShared<kInt4, kTiles>;
  static_assert(Block::kThreads == kTileThreads);
  constexpr int kChunks = Shared::kChunks, kRows = Shared::kRows;
  const PackedWeights& weight = args.weight;
  const PanelPlan plan(weight);
  const int panels = (weight.rows + kPanelRows - 1) / kPanelRows;
  const int first_panel = block.x() * kTilePanels;
  const int stages = (plan.chunks + kChunks - 1) / kChunks;
  const int each = (stages + block.num_y() - 1) / block.num_y();
  const int begin = block.y() * each;
  const int end = begin + each < stages ? begin + each : stages;
  const auto* const x = static_cast<const BFloat16*>(args.x);

  const auto copy_weights = [&](int stage) {
    typename Shared::Stage& to = shared.stages[(stage - begin) % kTileStages];
    block.Each([&](int thread) {
      LLAVA_UNROLL
      for (int i = 0; i < Shared::kValuePieces / kTileThreads; ++i) {
        const int item = i * kTileThreads + thread;
        const int p = item / (kChunks * kWarpLanes), c = item / kWarpLanes % kChunks;
        const int piece = item % kWarpLanes;  // lane (g, t) owes piece 8 t + g
        const int chunk = stage * kChunks + c;
        const bool there = first_panel + p < panels && chunk < plan.chunks;
        const int64_t from =
            there ? (first_panel + p) * plan.panel_bytes + plan.Values(chunk) + piece * 16 : 0;
        block.CopyLater(&to.values[p][c][piece % 8 * 4 + piece / 8], weight.panels + from, there);
      }
      if (thread < kTilePanels * 2 * Shared::kScalePieces) {
        const int p = thread / (2 * Shared::kScalePieces), half = thread / Shared::kScalePieces % 2;
        const int piece = thread % Shared::kScalePieces;
        const int chunk = stage * kChunks + half * (kChunks / 2);
        const bool there = first_panel + p < panels && chunk < plan.chunks;
        const int64_t from =
            there ? (first_panel + p) * plan.panel_bytes + plan.Scales(chunk) + piece * 16 : 0;
        block.CopyLater(&to.scales[p][half][piece], weight.panels + from, there);
      }
    });
  };
  const auto copy_x = [&](int stage) {
    typename Shared::Stage& to = shared.stages[(stage - begin) % kTileStages];
    block.Each([&](int thread) {
      LLAVA_UNROLL
      for (int i = 0; i < Shared::kRowPieces / kTileThreads; ++i) {
        const int item = i * kTileThreads + thread;
        const int row = item / Shared::kUnits, unit = item % Shared::kUnits;
        const int k = stage * kStageDepth + unit * 8;
        const bool there = row < args.rows && k < weight.depth;
        const int64_t from = there ? static_cast<int64_t>(row) * weight.depth + k : 0;
        block.CopyLater(&to.x[row][Shared::Place(row, unit)], x + from, there);
      }
    });
  };

  typename Block::template PerThread<Array<float, kRows>> sums;
  block.Each([&](int thread) {
    LLAVA_UNROLL
    for (int i = 0; i < kRows; ++i) sums[thread][i] = 0;
  });
  for (int i = 0; i < kTileStages - 1; ++i) {
    if (begin + i < end) copy_weights(begin + i);
  }
  block.AwaitEarlier();
  for (int i = 0; i < kTileStages - 1; ++i) {
    if (begin + i < end) copy_x(begin + i);
    block.CloseCopies();
  }

  for (int stage = begin; stage < end; ++stage) {
    block.template AwaitCopies<kTileStages - 2>();
    block.Sync();
    if (stage + kTileStages - 1 < end) {
      copy_weights(stage + kTileStages - 1);
      copy_x(stage + kTileStages - 1);
    }
    block.CloseCopies();
    const typename Shared::Stage& from = shared.stages[(stage - begin) % kTileStages];
    // Half of a stage's depth is two steps of the matrix unit.
    typename Block::template PerThread<Array<uint32_t, 16>> a;
    typename Block::template PerThread<Array<float, 4>> scales;
    block.Each([&](int thread) {
      const int lane = thread % kWarpLanes, p = thread / kWarpLanes % kTilePanels;
      const int half = thread / kWarpLanes / kTilePanels;
      if constexpr (kInt4) {
        WidenChunk<true>(Load<4>(from.values[p][half][lane].values), a[thread].values);
      } else {
        LLAVA_UNROLL
        for (int c = 0; c < 2; ++c) {
          WidenChunk<false>(Load<4>(from.values[p][2 * half + c][lane].values),
                            a[thread].values + 8 * c);
        }
      }
      const auto four =
          Load<4>(reinterpret_cast<const BFloat16*>(from.scales[p][half]) + lane / 4 * 4);
      LLAVA_UNROLL
      for (int i = 0; i < 4; ++i) scales[thread][i] = ToFloat(four[i]);
    });
    LLAVA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      typename Block::template PerThread<Array<uint32_t, 4>> b;
      typename Block::template PerThread<Array<float, 8>> product;
      block.Each([&](int thread) {
        const int lane = thread % kWarpLanes, half = thread / kWarpLanes / kTilePanels;
        const int row = tile * 8 + lane / 4, t = lane % 4;
        if constexpr (kInt4) {
          const Piece& piece = from.x[row][Shared::Place(row, half * 4 + t)];
          TakeRow<true>(reinterpret_cast<const BFloat16*>(&piece), b[thread].values);
        } else {
          LLAVA_UNROLL
          for (int c = 0; c < 2; ++c) {
            const Piece& piece = from.x[row][Shared::Place(row, (2 * half + c) * 2 + t / 2)];
            TakeRow<false>(reinterpret_cast<const BFloat16*>(&piece) + t % 2 * 4,
                           b[thread].values + 2 * c);
          }
        }
      });
      block.template Multiply<2>(product, a, b);
      block.Each([&](int thread) {
        LLAVA_UNROLL
        for (int i = 0; i < 8; ++i) {
          sums[thread][tile * 8 + i] += product[thread][i] * scales[thread][i / 2];
        }
      });
    }
  }

  // The stages' memory is free when all warps are through and nothing is copied any more.
  block.template AwaitCopies<0>();
  block.Sync();
  block.Each([&](int thread) {
    const int warp = thread / kWarpLanes;
    if (warp < kTilePanels) return;
    LLAVA_UNROLL
    for (int i = 0; i < kRows; ++i) {
      shared.cells[warp - kTilePanels][i][thread % kWarpLanes] = sums[thread][i];
    }
  });
  block.Sync();
  block.Each([&](int thread) {
    const int p = thread / kWarpLanes, lane = thread % kWarpLanes;
    if (p >= kTilePanels || first_panel + p >= panels) return;
    LLAVA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LLAVA_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const int row = tile * 8 + lane % 4 * 2 + odd;
        if (row >= args.rows) continue;
        Vector<float, 4> four;
        LLAVA_UNROLL
        for (int c = 0; c < 4; ++c) {
          const int i = tile * 8 + 2 * c + odd;
          four[c] = sums[thread][i] + shared.cells[p][i][lane];
        }
        const int64_t at =
            (static_cast<int64_t>(block.y()) * args.rows + row) * panels * kPanelRows;
        Store(partial + at + (first_panel + p) * kPanelRows + lane / 4 * 4, four);
      }
    }
  });
}

// Grid (rows, columns of the result / threads).
template <class Block>
LLAVA_DEVICE void MergeTilesBody(Block& block, const PackedProductArgs& args, const float* partial,
                                 int slices) {
  const PackedWeights& weight = args.weight;
  const int width = args.gated ? weight.rows / 2 : weight.rows;
  const int64_t stride = (weight.rows + kPanelRows - 1) / kPanelRows * kPanelRows;
  const int row = block.x();
  const auto* const x =
      static_cast<const BFloat16*>(args.x) + static_cast<int64_t>(row) * weight.depth;
  block.AwaitEarlier();
  // With what was kept apart.
  const auto whole = [&](int n) {
    float sum = 0;
    for (int s = 0; s < slices; ++s) {
      sum += partial[(static_cast<int64_t>(s) * args.rows + row) * stride + n];
    }
    for (int i = weight.first[n]; i < weight.first[n + 1]; ++i) {
      sum += weight.apart[i].value * ToFloat(x[weight.apart[i].k]);
    }
    return FromFloat<BFloat16>(sum);
  };
  block.Each([&](int thread) {
    const int n = block.y() * Block::kThreads + thread;
    if (n >= width) return;
    BFloat16& to = static_cast<BFloat16*>(args.out)[static_cast<int64_t>(row) * width + n];
    to = args.gated ? Gate(whole(n), whole(n + width)) : whole(n);
  });
}

}  // namespace llava::cuda
