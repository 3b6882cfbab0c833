#pragma once

// Body of the product of few rows with a matrix that is read once. See block.h.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/rows.h"

namespace llava::cuda {

// Columns of the product that a warp makes: two neighbours, or a gate and its unit.
inline constexpr int kWarpColumns = 2;

template <int kRows, int kThreads>
struct FewRowsShared {
  float sums[kThreads / kWarpLanes][kRows * kWarpColumns];
};

// Row of the weight that makes the `o`-th column of the `team`-th warp, or group of warps that
// share their columns. Beyond the last one: one whose result is thrown away.
template <bool kGated>
LLAVA_DEVICE int64_t WeightRow(int team, int o, const FewRowsArgs& args) {
  const int column = kGated ? team : team * kWarpColumns + o;
  const int real = column < args.out_width ? column : args.out_width - 1;
  return kGated ? real + static_cast<int64_t>(o) * args.out_width : real;
}

// Grid (columns of the result / those of a block). `kSplit` warps, one or all, share the steps of
// their columns. The order of the sums depends on in_width alone, so that a row does not depend on
// its neighbours. `ahead`: lines of a row that each lane asks for before the kernels ahead have
// ended.
template <class T, int kRows, bool kGated, int kSplit, class Block>
LLAVA_DEVICE void FewRowsBody(Block& block, FewRowsShared<kRows, Block::kThreads>& shared,
                              const FewRowsArgs& args, int ahead) {
  constexpr int kWarps = Block::kThreads / kWarpLanes;
  static_assert(kSplit == 1 || (kSplit == kWarps && !kGated));
  constexpr int V = 8;
  constexpr int kUnroll = 4;
  constexpr int kOut = kWarpColumns;
  constexpr int kStep = kWarpLanes * V;
  const T* const x = static_cast<const T*>(args.x);
  const T* const weight = static_cast<const T*>(args.weight);
  T* const out = static_cast<T*>(args.out);

  const auto team_of = [&](int thread) {
    return (block.x() * kWarps + thread / kWarpLanes) / kSplit;
  };
  const auto depth_of = [&](int thread, int round, int u) {
    const int part = thread / kWarpLanes % kSplit;
    return ((round * kUnroll + u) * kSplit + part) * kStep + thread % kWarpLanes * V;
  };

  // Weights of a round, kUnroll steps of kStep; nothing behind the end.
  using Weights = Array<Vector<T, V>, kUnroll * kOut>;
  const auto load = [&](int thread, int round, Weights& weights) {
    LLAVA_UNROLL
    for (int o = 0; o < kOut; ++o) {
      const T* const from = weight + WeightRow<kGated>(team_of(thread), o, args) * args.in_width;
      LLAVA_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        const int k = depth_of(thread, round, u);
        weights[u * kOut + o] = {};
        if (k < args.in_width) weights[u * kOut + o] = LoadOnce<V>(from + k);
      }
    }
  };

  typename Block::template PerThread<Weights> first;
  block.Each([&](int thread) {
    load(thread, 0, first[thread]);
    constexpr int kLine = static_cast<int>(128 / sizeof(T));
    const int part = thread / kWarpLanes % kSplit;
    for (int line = 0; line < ahead; ++line) {
      const int k = ((line * kSplit + part) * kWarpLanes + thread % kWarpLanes) * kLine;
      if (k >= args.in_width) break;
      LLAVA_UNROLL
      for (int o = 0; o < kOut; ++o) {
        PrefetchLine(weight + WeightRow<kGated>(team_of(thread), o, args) * args.in_width + k);
      }
    }
  });
  block.AwaitEarlier();

  typename Block::template PerThread<Array<float, kRows * kOut>> sums;
  block.Each([&](int thread) {
    Array<float, kRows* kOut>& sum = sums[thread];
    LLAVA_UNROLL
    for (int i = 0; i < kRows * kOut; ++i) sum[i] = 0;
    Weights now = first[thread], next;
    constexpr int kRound = kUnroll * kStep * kSplit;
    const int rounds = (args.in_width + kRound - 1) / kRound;
    for (int round = 0; round < rounds; ++round) {
      load(thread, round + 1, next);
      LLAVA_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        const int k = depth_of(thread, round, u);
        if (k >= args.in_width) continue;
        LLAVA_UNROLL
        for (int m = 0; m < kRows; ++m) {
          const Vector<T, V> a = Load<V>(x + static_cast<int64_t>(m) * args.in_width + k);
          LLAVA_UNROLL
          for (int o = 0; o < kOut; ++o) {
            LLAVA_UNROLL
            for (int j = 0; j < V; ++j) {
              sum[m * kOut + o] += ToFloat(now[u * kOut + o][j]) * ToFloat(a[j]);
            }
          }
        }
      }
      now = next;
    }
  });
  block.template Sum<kWarpLanes>(sums);
  if constexpr (kSplit > 1) {
    block.Each([&](int thread) {
      if (thread % kWarpLanes != 0) return;
      LLAVA_UNROLL
      for (int i = 0; i < kRows * kOut; ++i) shared.sums[thread / kWarpLanes][i] = sums[thread][i];
    });
    block.Sync();
    block.Each([&](int thread) {
      if (thread >= kRows * kOut) return;
      float sum = 0;
      LLAVA_UNROLL
      for (int part = 0; part < kSplit; ++part) sum += shared.sums[part][thread];
      const int column = block.x() * kOut + thread % kOut;
      if (column >= args.out_width) return;
      out[static_cast<int64_t>(thread / kOut) * args.out_width + column] = FromFloat<T>(sum);
    });
    return;
  }
  block.Each([&](int thread) {
    if (thread % kWarpLanes != 0) return;
    const int team = team_of(thread);
    LLAVA_UNROLL
    for (int m = 0; m < kRows; ++m) {
      T* const row = out + static_cast<int64_t>(m) * args.out_width;
      const Array<float, kRows* kOut>& sum = sums[thread];
      if constexpr (kGated) {
        const T gate = FromFloat<T>(sum[m * kOut]), up = FromFloat<T>(sum[m * kOut + 1]);
        if (team < args.out_width) row[team] = Gate(gate, up);
      } else {
        LLAVA_UNROLL
        for (int o = 0; o < kOut; ++o) {
          const int column = team * kOut + o;
          if (column < args.out_width) row[column] = FromFloat<T>(sum[m * kOut + o]);
        }
      }
    }
  });
}

}  // namespace llava::cuda
