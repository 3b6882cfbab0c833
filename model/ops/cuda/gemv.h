#pragma once

// Body of the product of few rows with a matrix that is read once. See block.h.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/rows.h"

namespace llava::cuda {

// Columns of the product that a warp makes: two neighbours, or a gate and its unit.
inline constexpr int kWarpColumns = 2;

// Row of the weight that makes the `o`-th column of this thread's warp. Beyond the last one: one
// whose result is thrown away.
template <bool kGated, class Block>
LLAVA_DEVICE int64_t WeightRow(const Block& block, int thread, int o, const FewRowsArgs& args) {
  const int warp = block.x() * (Block::kThreads / kWarpLanes) + thread / kWarpLanes;
  const int column = kGated ? warp : warp * kWarpColumns + o;
  const int real = column < args.out_width ? column : args.out_width - 1;
  return kGated ? real + static_cast<int64_t>(o) * args.out_width : real;
}

// Grid (columns of the result / those of a block). The order of the sums depends on in_width alone,
// so that a row does not depend on its neighbours.
template <class T, int kRows, bool kGated, class Block>
LLAVA_DEVICE void FewRowsBody(Block& block, const FewRowsArgs& args) {
  constexpr int V = 8;
  constexpr int kUnroll = 4;
  constexpr int kOut = kWarpColumns;
  constexpr int kStep = kWarpLanes * V;
  const T* const x = static_cast<const T*>(args.x);
  const T* const weight = static_cast<const T*>(args.weight);
  T* const out = static_cast<T*>(args.out);

  // Weights of a round, kUnroll steps of kStep; nothing behind the end.
  using Weights = Array<Vector<T, V>, kUnroll * kOut>;
  const auto load = [&](int thread, int round, Weights& weights) {
    const int first = round * kUnroll * kStep + thread % kWarpLanes * V;
    LLAVA_UNROLL
    for (int o = 0; o < kOut; ++o) {
      const T* const from = weight + WeightRow<kGated>(block, thread, o, args) * args.in_width;
      LLAVA_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        const int k = first + u * kStep;
        weights[u * kOut + o] = {};
        if (k < args.in_width) weights[u * kOut + o] = LoadOnce<V>(from + k);
      }
    }
  };

  typename Block::template PerThread<Weights> first;
  block.Each([&](int thread) {
    load(thread, 0, first[thread]);
    const int ahead = thread % kWarpLanes * static_cast<int>(128 / sizeof(T));
    if (ahead >= args.in_width) return;
    LLAVA_UNROLL
    for (int o = 0; o < kOut; ++o) {
      PrefetchLine(weight + WeightRow<kGated>(block, thread, o, args) * args.in_width + ahead);
    }
  });
  block.AwaitEarlier();

  typename Block::template PerThread<Array<float, kRows * kOut>> sums;
  block.Each([&](int thread) {
    Array<float, kRows* kOut>& sum = sums[thread];
    LLAVA_UNROLL
    for (int i = 0; i < kRows * kOut; ++i) sum[i] = 0;
    Weights now = first[thread], next;
    const int rounds = (args.in_width + kUnroll * kStep - 1) / (kUnroll * kStep);
    for (int round = 0; round < rounds; ++round) {
      load(thread, round + 1, next);
      LLAVA_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        const int k = (round * kUnroll + u) * kStep + thread % kWarpLanes * V;
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
  block.Each([&](int thread) {
    if (thread % kWarpLanes != 0) return;
    const int warp = block.x() * (Block::kThreads / kWarpLanes) + thread / kWarpLanes;
    LLAVA_UNROLL
    for (int m = 0; m < kRows; ++m) {
      T* const row = out + static_cast<int64_t>(m) * args.out_width;
      const Array<float, kRows* kOut>& sum = sums[thread];
      if constexpr (kGated) {
        const T gate = FromFloat<T>(sum[m * kOut]), up = FromFloat<T>(sum[m * kOut + 1]);
        if (warp < args.out_width) row[warp] = Gate(gate, up);
      } else {
        LLAVA_UNROLL
        for (int o = 0; o < kOut; ++o) {
          const int column = warp * kOut + o;
          if (column < args.out_width) row[column] = FromFloat<T>(sum[m * kOut + o]);
        }
      }
    }
  });
}

}  // namespace llava::cuda
