#pragma once

// Body of the product of one row with a plain matrix: all it does is read the matrix, so it is
// built to keep memory busy from the end of one kernel to the beginning of the next. See block.h.
//
// A block stays on its multiprocessor and its warps take pairs of the matrix's rows in turn. Each
// lane copies the 16 bytes that it will need itself into a ring of its own in shared memory, many
// steps ahead and over the ends of rows: no barrier, and nothing drains in between. The ring is
// filled before the kernels ahead have ended, and half of a multiprocessor is left to the next
// product, so that it can do the same. The row is put into shared memory once, as all warps read
// all of it for each of their pairs: a load of it in the loop would keep every step waiting.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/rows.h"

namespace llava::cuda {

inline constexpr int kRowThreads = 256;
inline constexpr int kRowStages = 9;
inline constexpr int kRowPair = 2;               // rows of the matrix that share what is read of x
inline constexpr int kRowStep = kWarpLanes * 8;  // of the depth

using BFloat16Pairs = Vector<uint32_t, 4>;

struct RowProductShared {
  BFloat16Pairs ring[kRowStages][kRowThreads / kWarpLanes][kRowPair][kWarpLanes];
  BFloat16Pairs x[kRowMostDepth / 8];
};
static_assert(kRowMostDepth % kRowStep == 0);
static_assert(sizeof(RowProductShared) <= 99 << 10, "sm_86 and sm_89 let a block share no more");

// Grid: any number of blocks.
template <class Block>
LLAVA_DEVICE void RowProductBody(Block& block, RowProductShared& shared,
                                 const RowProductArgs& args) {
  static_assert(Block::kThreads == kRowThreads);
  constexpr int kWarps = kRowThreads / kWarpLanes;
  const auto* const x = static_cast<const BFloat16*>(args.x);
  const auto* const weight = static_cast<const BFloat16*>(args.weight);
  auto* const out = static_cast<BFloat16*>(args.out);
  const int width = args.gated ? args.rows / 2 : args.rows;
  const int pairs = args.gated ? width : (width + kRowPair - 1) / kRowPair;
  const int steps = (args.depth + kRowStep - 1) / kRowStep;
  const int turns = (pairs + block.num_x() * kWarps - 1) / (block.num_x() * kWarps);

  // Neighbours go to different blocks, so that all have as much to do.
  const auto pair_of = [&](int thread, int turn) {
    return (turn * kWarps + WarpOf(thread)) * block.num_x() + block.x();
  };
  // Of an odd matrix the last row stands twice.
  const auto row_of = [&](int pair, int o) {
    if (args.gated) return pair + o * width;
    const int row = pair * kRowPair + o;
    return row < width ? row : width - 1;
  };
  // Of the pair that is copied; one that is not there is copied as zeros.
  struct Source {
    const BFloat16* rows[kRowPair];
    bool there;
  };
  typename Block::template PerThread<Source> sources;
  const auto copy = [&](const RingPlace<kRowStages>& place) {
    if (place.turn >= turns) return;
    block.Each([&](int thread) {
      Source& source = sources[thread];
      const int lane = LaneOf(thread), k = place.step * kRowStep;
      if (place.step == 0) {
        const int pair = pair_of(thread, place.turn);
        source.there = pair < pairs;
        LLAVA_UNROLL
        for (int o = 0; o < kRowPair; ++o) {
          const int64_t row = row_of(source.there ? pair : 0, o);
          source.rows[o] = weight + row * args.depth + lane * 8;
        }
      }
      const bool there = source.there && k + lane * 8 < args.depth;
      LLAVA_UNROLL
      for (int o = 0; o < kRowPair; ++o) {
        block.CopyLater(&shared.ring[place.stage][WarpOf(thread)][o][lane],
                        there ? source.rows[o] + k : weight, there);
      }
    });
  };

  RingPlace<kRowStages> ahead, now;
  for (int i = 0; i < kRowStages - 1; ++i) {
    copy(ahead);
    block.CloseCopies();
    ahead.Next(steps);
  }
  block.AwaitEarlier();

  block.Each([&](int thread) {
    // With zeros behind the end of the depth, where those of the weights are.
    for (int at = thread; at < steps * kWarpLanes; at += kRowThreads) {
      const bool there = at * 8 < args.depth;
      block.CopyLater(&shared.x[at], there ? x + at * 8 : x, there);
    }
  });
  block.CloseCopies();
  block.template AwaitCopies<0>();
  block.Sync();

  // Two sums a row, of even and odd places, for shorter chains.
  typename Block::template PerThread<Array<float, 2 * kRowPair>> parts;
  while (now.turn < turns) {
    block.template AwaitCopies<kRowStages - 2>();
    // Where the step before has been read.
    copy(ahead);
    block.CloseCopies();
    ahead.Next(steps);
    const RingPlace<kRowStages> at = now;
    now.Next(steps);
    block.Each([&](int thread) {
      Array<float, 2 * kRowPair>& part = parts[thread];
      if (at.step == 0) {
        LLAVA_UNROLL
        for (int i = 0; i < 2 * kRowPair; ++i) part[i] = 0;
      }
      const int lane = LaneOf(thread);
      const BFloat16Pairs row = shared.x[at.step * kWarpLanes + lane];
      LLAVA_UNROLL
      for (int o = 0; o < kRowPair; ++o) {
        const BFloat16Pairs w = shared.ring[at.stage][WarpOf(thread)][o][lane];
        LLAVA_UNROLL
        for (int j = 0; j < 4; ++j) {
          part[2 * o] += LowFloat(w[j]) * LowFloat(row[j]);
          part[2 * o + 1] += HighFloat(w[j]) * HighFloat(row[j]);
        }
      }
    });
    if (at.step + 1 < steps) continue;
    typename Block::template PerThread<Array<float, kRowPair>> sums;
    block.Each([&](int thread) {
      LLAVA_UNROLL
      for (int o = 0; o < kRowPair; ++o) {
        sums[thread][o] = parts[thread][2 * o] + parts[thread][2 * o + 1];
      }
    });
    block.template Sum<kWarpLanes>(sums);
    block.Each([&](int thread) {
      const int pair = pair_of(thread, at.turn);
      if (LaneOf(thread) != 0 || pair >= pairs) return;
      Array<BFloat16, kRowPair> rounded;
      LLAVA_UNROLL
      for (int o = 0; o < kRowPair; ++o) rounded[o] = FromFloat<BFloat16>(sums[thread][o]);
      if (args.gated) {
        out[pair] = Gate(rounded[0], rounded[1]);
        return;
      }
      LLAVA_UNROLL
      for (int o = 0; o < kRowPair; ++o) {
        if (pair * kRowPair + o < width) out[pair * kRowPair + o] = rounded[o];
      }
    });
  }
}

}  // namespace llava::cuda
