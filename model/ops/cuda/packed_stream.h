#pragma once

// Body of the product of up to eight rows with packed integer weights, built like row_product.h:
// blocks stay, every lane copies what it will need itself into a ring of its own, and the next
// product finds room beside this one to begin reading. The rows, of which each warp takes another
// part of the depth, come through the ring, too: their first stages when they are complete, the
// others together with the weights. See packed.h for panels and chunks.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/packed.h"

namespace llava::cuda {

// With at most 64 registers a thread two such blocks leave room for one of a norm or of attention.
inline constexpr int kPackedStreamThreads = 256;
inline constexpr int kPackedStreamRows = 8;    // of x
inline constexpr int kPackedStreamChunks = 2;  // of a stage; they have one scale

template <bool kInt4>
struct PackedStreamShared {
  static constexpr int kWarps = kPackedStreamThreads / kWarpLanes;
  static constexpr int kStages = kInt4 ? 5 : 6;
  // By the lane that takes them.
  struct Stage {
    Vector<uint32_t, 4> values[kPackedStreamChunks][kWarpLanes];
    Vector<BFloat16, kInt4 ? 8 : 4> x[kPackedStreamChunks][kWarpLanes];
    Vector<BFloat16, 4> scales[kWarpLanes];
  };
  Stage ring[kStages][kWarps];
  float sums[kWarps][kPackedStreamRows][kWarpLanes];  // of a panel, by warp and lane
};
static_assert(sizeof(PackedStreamShared<true>) <= 99 << 10 &&
                  sizeof(PackedStreamShared<false>) <= 99 << 10,
              "sm_86 and sm_89 let a block share no more");

// Grid: any number of blocks. A block has a panel at a time, gated one and that of its units, whose
// stages its warps take in turn. A row depends neither on what its neighbours are nor on how many.
template <bool kInt4, bool kGated, class Block>
LLAVA_DEVICE void PackedStreamBody(Block& block, PackedStreamShared<kInt4>& shared,
                                   const PackedProductArgs& args) {
  using Shared = PackedStreamShared<kInt4>;
  static_assert(Block::kThreads == kPackedStreamThreads);
  constexpr int kPanels = kGated ? 2 : 1;
  constexpr int kSplit = Shared::kWarps / kPanels;  // warps that share a panel
  constexpr int kChunks = kPackedStreamChunks, kStages = Shared::kStages;
  constexpr int kChunkDepth = kInt4 ? 32 : 16;
  constexpr int kSteps = kInt4 ? 2 : 1;  // of the matrix unit, for a chunk
  const PackedWeights& weight = args.weight;
  const PanelPlan plan(weight);
  // Unsigned, for a quotient is a shift then: the loop has no room to keep all of these.
  const auto parts_of = [](uint32_t count, uint32_t size) {
    return static_cast<int>((count + size - 1) / size);
  };
  const int places = parts_of(weight.rows, kPanelRows * kPanels);
  const int steps = parts_of(plan.chunks, kChunks * kSplit);
  const auto* const x = static_cast<const BFloat16*>(args.x);

  const auto place_of = [&](int turn) { return turn * block.num_x() + block.x(); };
  const auto panel_of = [&](int place, int p) { return place + p * places; };
  // The first chunk of a warp's stages; a step is a whole number of groups further.
  const auto first_of = [&](int thread) { return WarpOf(thread) / kPanels * kChunks; };
  const int stride = (kSplit * kChunks >> plan.shift) * plan.group_bytes;
  // What the lane copies of the panel next.
  struct Source {
    const uint8_t *values, *scales;
  };
  typename Block::template PerThread<Source> sources;
  const auto copy = [&](const RingPlace<kStages>& at) {
    const int place = place_of(at.turn);
    if (place >= places) return;
    block.Each([&](int thread) {
      const int warp = WarpOf(thread), lane = LaneOf(thread), g = lane / 4, t = lane % 4;
      Source& source = sources[thread];
      if (at.step == 0) {
        const uint8_t* const panel =
            weight.panels + panel_of(place, warp % kPanels) * plan.panel_bytes;
        source.values = panel + plan.Values(first_of(thread)) + t * 128 + g * 16;
        source.scales = panel + plan.Scales(first_of(thread)) + g * 8;
        if (thread < kPanels) PrefetchLine(weight.first + panel_of(place, thread) * kPanelRows);
      }
      if (at.step * (kSplit * kChunks) + first_of(thread) >= plan.chunks) return;
      typename Shared::Stage& to = shared.ring[at.stage][warp];
      LLAVA_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        block.CopyLater(&to.values[c][lane], source.values + c * kChunkBytes, true);
      }
      block.CopyLater(&to.scales[lane], source.scales, true);
      source.values += stride;
      source.scales += stride;
    });
  };
  // What belongs to these weights of the lane's row; beyond the end zeros, which meet what may lie
  // there.
  const auto copy_x = [&](const RingPlace<kStages>& at) {
    if (place_of(at.turn) >= places) return;
    block.Each([&](int thread) {
      const int warp = WarpOf(thread), lane = LaneOf(thread);
      const int row = lane / 4 < args.rows ? lane / 4 : args.rows - 1;
      const int first = (at.step * (kSplit * kChunks) + first_of(thread)) * kChunkDepth;
      LLAVA_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        const int k = first + c * kChunkDepth + lane % 4 * 4 * kSteps;
        const bool there = k < weight.depth;
        block.CopyLater(&shared.ring[at.stage][warp].x[c][lane],
                        x + (row * weight.depth + (there ? k : 0)), there);
      }
    });
  };

  // What follows in the first panels, into the cache: the ring alone is read before attention is
  // through.
  const auto fetch = [&] {
    const int place = place_of(0);
    if (place >= places) return;
    constexpr int64_t kMost = (96 << 10) / kPanels;
    const int64_t end = plan.panel_bytes < kMost ? plan.panel_bytes : kMost;
    block.Each([&](int thread) {
      for (int64_t at = static_cast<int64_t>(thread) * 128; at < end; at += Block::kThreads * 128) {
        for (int p = 0; p < kPanels; ++p) {
          PrefetchLine(weight.panels + panel_of(place, p) * plan.panel_bytes + at);
        }
      }
    });
  };

  RingPlace<kStages> ahead, begun, now;
  for (int i = 0; i < kStages - 1; ++i) {
    copy(ahead);
    block.CloseCopies();
    ahead.Next(steps);
  }
  fetch();
  block.AwaitEarlier();
  for (int i = 0; i < kStages - 1; ++i) {
    copy_x(begun);
    block.CloseCopies();
    begun.Next(steps);
  }

  typename Block::template PerThread<Array<float, kPackedStreamRows>> sums;
  // Where the weights begin that were kept apart for each of the lane's four columns. The compiler
  // waits for them in the panel's first step: they are in a cache by then.
  typename Block::template PerThread<Array<int32_t, 5>> bounds;
  for (; place_of(now.turn) < places; now.Next(steps)) {
    block.template AwaitCopies<kStages - 2>();
    copy(ahead);
    copy_x(ahead);
    block.CloseCopies();
    ahead.Next(steps);
    const int place = place_of(now.turn);
    if (now.step == 0) {
      block.Each([&](int thread) {
        LLAVA_UNROLL
        for (int i = 0; i < kPackedStreamRows; ++i) sums[thread][i] = 0;
        const int warp = WarpOf(thread), lane = LaneOf(thread);
        const int first = panel_of(place, warp % kPanels) * kPanelRows + lane / 4 * 4;
        LLAVA_UNROLL
        for (int c = 0; c < 5; ++c) {
          bounds[thread][c] = weight.first[first + c < weight.rows ? first + c : weight.rows];
        }
      });
    } else if (now.step == 1) {
      block.Each([&](int thread) {
        const Array<int32_t, 5>& bound = bounds[thread];
        if (WarpOf(thread) >= kPanels || LaneOf(thread) % 4 != 0 || bound[0] == bound[4]) return;
        PrefetchLine(weight.apart + bound[0]);
        PrefetchLine(weight.apart + bound[4] - 1);
      });
    }
    typename Block::template PerThread<Array<float, 8>> product;
    LLAVA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      typename Block::template PerThread<Array<uint32_t, 8 * kSteps>> a;
      typename Block::template PerThread<Array<uint32_t, 2 * kSteps>> b;
      block.Each([&](int thread) {
        const int warp = WarpOf(thread), lane = LaneOf(thread);
        const typename Shared::Stage& from = shared.ring[now.stage][warp];
        TakeRow<kInt4>(from.x[c][lane].values, b[thread].values);
        WidenChunk<kInt4>(from.values[c][lane], a[thread].values);
      });
      if (c == 0) {
        block.template Multiply<kSteps>(product, a, b);
      } else {
        block.template Multiply<kSteps, /*kAdds=*/true>(product, a, b);
      }
    }
    block.Each([&](int thread) {
      const int warp = WarpOf(thread), lane = LaneOf(thread);
      if (now.step * (kSplit * kChunks) + first_of(thread) >= plan.chunks) return;
      const Vector<BFloat16, 4> scales = shared.ring[now.stage][warp].scales[lane];
      LLAVA_UNROLL
      for (int i = 0; i < 8; ++i) sums[thread][i] += product[thread][i] * ToFloat(scales[i / 2]);
    });
    if (now.step + 1 < steps) continue;

    // With what was kept apart: the warps of a panel take these in turn, too.
    block.Each([&](int thread) {
      const int part = WarpOf(thread) / kPanels, t = LaneOf(thread) % 4;
      LLAVA_UNROLL
      for (int c = 0; c < 4; ++c) {
        for (int j = bounds[thread][c] + part; j < bounds[thread][c + 1]; j += kSplit) {
          const PackedWeights::Apart apart = weight.apart[j];
          LLAVA_UNROLL
          for (int odd = 0; odd < 2; ++odd) {
            const int row = 2 * t + odd;
            if (row >= args.rows) continue;
            const BFloat16 value = x[static_cast<int64_t>(row) * weight.depth + apart.k];
            sums[thread][2 * c + odd] += apart.value * ToFloat(value);
          }
        }
      }
      LLAVA_UNROLL
      for (int i = 0; i < kPackedStreamRows; ++i) {
        shared.sums[WarpOf(thread)][i][LaneOf(thread)] = sums[thread][i];
      }
    });
    block.Sync();
    const auto whole = [&](int thread, int p) {
      const int row = thread / kPanelRows, column = thread % kPanelRows;
      const int lane = column / 4 * 4 + row / 2, i = column % 4 * 2 + row % 2;
      float sum = 0;
      LLAVA_UNROLL
      for (int part = 0; part < kSplit; ++part) sum += shared.sums[part * kPanels + p][i][lane];
      return FromFloat<BFloat16>(sum);
    };
    const int width = kGated ? weight.rows / 2 : weight.rows;
    block.Each([&](int thread) {
      const int row = thread / kPanelRows, column = thread % kPanelRows;
      const int n = place * kPanelRows + column;
      if (row >= args.rows || n >= width) return;
      BFloat16& to = static_cast<BFloat16*>(args.out)[static_cast<int64_t>(row) * width + n];
      to = kGated ? Gate(whole(thread, 0), whole(thread, kPanels - 1)) : whole(thread, 0);
    });
    block.Sync();
  }
}

}  // namespace llava::cuda
