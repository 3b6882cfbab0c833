#pragma once

// Body of the product of few rows with a matrix that is read once. See block.h.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"

namespace llava::cuda {

// A warp makes kOut columns of the result for kRows rows of x. Grid (columns / (warps kOut)). The
// order of the sums depends on `in` alone, so that a row does not depend on its neighbours.
template <class T, int kRows, int kOut, class Block>
LLAVA_DEVICE void FewRowsBody(Block& block, const FewRowsArgs& args) {
  constexpr int V = 8;
  constexpr int kUnroll = 4;
  constexpr int kStep = kWarpLanes * V;
  const T* const x = static_cast<const T*>(args.x);
  const T* const weight = static_cast<const T*>(args.weight);
  T* const out = static_cast<T*>(args.out);
  const auto first_of = [&](int thread) {
    return (block.x() * (Block::kThreads / kWarpLanes) + thread / kWarpLanes) * kOut;
  };

  typename Block::template PerThread<Array<float, kRows * kOut>> sums;
  block.Each([&](int thread) {
    Array<float, kRows* kOut>& sum = sums[thread];
    LLAVA_UNROLL
    for (int i = 0; i < kRows * kOut; ++i) sum[i] = 0;
    const T* from[kOut];
    LLAVA_UNROLL
    for (int o = 0; o < kOut; ++o) {
      const int column = first_of(thread) + o;
      // Beyond the last column: computed and thrown away.
      from[o] =
          weight + static_cast<int64_t>(column < args.out_width ? column : args.out_width - 1) *
                       args.in_width;
    }
    const auto add = [&](const Vector<T, V>& w, int o, int k) {
      LLAVA_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const Vector<T, V> a = Load<V>(x + static_cast<int64_t>(m) * args.in_width + k);
        LLAVA_UNROLL
        for (int j = 0; j < V; ++j) sum[m * kOut + o] += ToFloat(w[j]) * ToFloat(a[j]);
      }
    };
    int k = thread % kWarpLanes * V;
    for (; k + (kUnroll - 1) * kStep < args.in_width; k += kUnroll * kStep) {
      Vector<T, V> w[kUnroll][kOut];
      LLAVA_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        LLAVA_UNROLL
        for (int o = 0; o < kOut; ++o) w[u][o] = LoadOnce<V>(from[o] + k + u * kStep);
      }
      LLAVA_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        LLAVA_UNROLL
        for (int o = 0; o < kOut; ++o) add(w[u][o], o, k + u * kStep);
      }
    }
    for (; k < args.in_width; k += kStep) {
      LLAVA_UNROLL
      for (int o = 0; o < kOut; ++o) add(LoadOnce<V>(from[o] + k), o, k);
    }
  });
  block.template Sum<kWarpLanes>(sums);
  block.Each([&](int thread) {
    if (thread % kWarpLanes != 0) return;
    LLAVA_UNROLL
    for (int o = 0; o < kOut; ++o) {
      const int column = first_of(thread) + o;
      if (column >= args.out_width) continue;
      LLAVA_UNROLL
      for (int m = 0; m < kRows; ++m) {
        out[static_cast<int64_t>(m) * args.out_width + column] =
            FromFloat<T>(sums[thread][m * kOut + o]);
      }
    }
  });
}

}  // namespace llava::cuda
