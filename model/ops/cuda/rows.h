#pragma once

// Bodies of the kernels that go over rows: norm, rotary positions, gated unit, activation. See
// block.h. `V` values lie together in a load: 8, or 1 where a size is no multiple of 8.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"

namespace llava::cuda {

template <int kThreads>
struct RmsNormShared {
  float sums[kThreads / kWarpLanes];
};

// One block a row.
template <class T, int V, class Block>
LLAVA_DEVICE void AddRmsNormBody(Block& block, RmsNormShared<Block::kThreads>& shared,
                                 const AddRmsNormArgs& args) {
  constexpr int kStep = Block::kThreads * V;
  constexpr int kKept = 2;  // vectors of a thread that stay in registers; wider rows are read again
  const int64_t first = static_cast<int64_t>(block.x()) * args.width;
  T* const residual = static_cast<T*>(args.residual) + first;
  const T* const delta = args.delta ? static_cast<const T*>(args.delta) + first : nullptr;
  const T* const weight = static_cast<const T*>(args.weight);
  T* const out = static_cast<T*>(args.out) + first;

  typename Block::template PerThread<Array<Vector<T, V>, kKept>> kept, weights;
  block.Each([&](int thread) {
    LLAVA_UNROLL
    for (int p = 0; p < kKept; ++p) {
      const int i = p * kStep + thread * V;
      if (i < args.width) weights[thread][p] = Load<V>(weight + i);
    }
  });
  block.AwaitEarlier();

  typename Block::template PerThread<Array<float, 1>> sum;
  block.Each([&](int thread) {
    float squares = 0;
    const auto add = [&](int i) {
      Vector<T, V> x = Load<V>(residual + i);
      if (delta) {
        const Vector<T, V> more = Load<V>(delta + i);
        LLAVA_UNROLL
        for (int j = 0; j < V; ++j) x[j] = FromFloat<T>(ToFloat(x[j]) + ToFloat(more[j]));
        Store(residual + i, x);
      }
      LLAVA_UNROLL
      for (int j = 0; j < V; ++j) squares += ToFloat(x[j]) * ToFloat(x[j]);
      return x;
    };
    LLAVA_UNROLL
    for (int p = 0; p < kKept; ++p) {
      const int i = p * kStep + thread * V;
      if (i < args.width) kept[thread][p] = add(i);
    }
    for (int i = kKept * kStep + thread * V; i < args.width; i += kStep) add(i);
    sum[thread][0] = squares;
  });
  block.template Sum<kWarpLanes>(sum);
  block.Each([&](int thread) {
    if (thread % kWarpLanes == 0) shared.sums[thread / kWarpLanes] = sum[thread][0];
  });
  block.Sync();
  block.Each([&](int thread) {
    float squares = 0;
    LLAVA_UNROLL
    for (int i = 0; i < Block::kThreads / kWarpLanes; ++i) squares += shared.sums[i];
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(args.width) + args.eps);
    const auto norm = [&](int i, Vector<T, V> x, const Vector<T, V>& w) {
      LLAVA_UNROLL
      for (int j = 0; j < V; ++j) {
        x[j] = FromFloat<T>(ToFloat(FromFloat<T>(ToFloat(x[j]) * scale)) * ToFloat(w[j]));
      }
      Store(out + i, x);
    };
    LLAVA_UNROLL
    for (int p = 0; p < kKept; ++p) {
      const int i = p * kStep + thread * V;
      if (i < args.width) norm(i, kept[thread][p], weights[thread][p]);
    }
    for (int i = kKept * kStep + thread * V; i < args.width; i += kStep) {
      norm(i, Load<V>(residual + i), Load<V>(weight + i));  // what this thread stored
    }
  });
}

// Blocks (row, part of the row): the parts share its items.
template <class T, int V, class Block>
LLAVA_DEVICE void RopeToCacheBody(Block& block, const RopeToCacheArgs& args) {
  const int half = args.head_dim / 2;
  const int turns = half / V;            // items that turn one head
  const int copies = args.head_dim / V;  // items that copy one head
  const int turning = (args.num_heads + args.num_kv_heads) * turns;
  const int items = turning + args.num_kv_heads * copies;
  const int64_t row = block.x();
  const int64_t width =
      static_cast<int64_t>(args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
  T* const qkv = static_cast<T*>(args.qkv) + row * width;
  const int64_t place = static_cast<int64_t>(args.slots[row]) * args.num_kv_heads * args.head_dim;
  T* const k_cache = static_cast<T*>(args.k_cache) + place;
  T* const v_cache = static_cast<T*>(args.v_cache) + place;
  const float* const cos = args.cos + static_cast<int64_t>(args.positions[row]) * half;
  const float* const sin = args.sin + static_cast<int64_t>(args.positions[row]) * half;

  block.AwaitEarlier();
  block.Each([&](int thread) {
    for (int item = block.y() * Block::kThreads + thread; item < items;
         item += block.num_y() * Block::kThreads) {
      if (item < turning) {
        const int head = item / turns, i = item % turns * V;
        T* const low = qkv + head * args.head_dim + i;
        Vector<T, V> a = Load<V>(low), b = Load<V>(low + half);
        LLAVA_UNROLL
        for (int j = 0; j < V; ++j) {
          const float x = ToFloat(a[j]), y = ToFloat(b[j]), c = cos[i + j], s = sin[i + j];
          a[j] = FromFloat<T>(x * c - y * s);
          b[j] = FromFloat<T>(y * c + x * s);
        }
        Store(low, a);
        Store(low + half, b);
        if (head >= args.num_heads) {
          T* const to = k_cache + (head - args.num_heads) * args.head_dim + i;
          Store(to, a);
          Store(to + half, b);
        }
      } else {
        const int i = (item - turning) * V;
        Store(v_cache + i, Load<V>(qkv + (args.num_heads + args.num_kv_heads) * args.head_dim + i));
      }
    }
  });
}

// silu(gate) * up, rounded after each.
template <class T>
LLAVA_DEVICE T Gate(T gate, T up) {
  const float g = ToFloat(gate);
  return FromFloat<T>(ToFloat(FromFloat<T>(g / (1.0f + expf(-g)))) * ToFloat(up));
}

// Blocks (row, part of the row).
template <class T, int V, class Block>
LLAVA_DEVICE void SwiGluBody(Block& block, const SwiGluArgs& args) {
  const int64_t row = block.x();
  const T* const gate = static_cast<const T*>(args.gate_up) + row * 2 * args.width;
  T* const out = static_cast<T*>(args.out) + row * args.width;
  block.AwaitEarlier();
  block.Each([&](int thread) {
    const int i = (block.y() * Block::kThreads + thread) * V;
    if (i >= args.width) return;
    Vector<T, V> x = Load<V>(gate + i);
    const Vector<T, V> up = Load<V>(gate + args.width + i);
    LLAVA_UNROLL
    for (int j = 0; j < V; ++j) x[j] = Gate(x[j], up[j]);
    Store(out + i, x);
  });
}

// Blocks share the items.
template <class T, int V, class Block>
LLAVA_DEVICE void QuickGeluBody(Block& block, const QuickGeluArgs& args) {
  const T* const from = static_cast<const T*>(args.x);
  T* const to = static_cast<T*>(args.out);
  block.AwaitEarlier();
  block.Each([&](int thread) {
    const int64_t i = (static_cast<int64_t>(block.x()) * Block::kThreads + thread) * V;
    if (i >= args.count) return;
    Vector<T, V> x = Load<V>(from + i);
    LLAVA_UNROLL
    for (int j = 0; j < V; ++j) {
      const float value = ToFloat(x[j]);
      x[j] = FromFloat<T>(value / (1.0f + expf(-1.702f * value)));
    }
    Store(to + i, x);
  });
}

}  // namespace llava::cuda
