#pragma once

// Body of the kernel that chooses the next tokens. See block.h. Sums are of doubles in a fixed
// order, so that a draw is the host's but for the last bits of the random number.

#include <stdexcept>
#include <string>

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/dispatch.h"
#include "model/ops/cuda/draw.h"

namespace llava::cuda {

template <int kThreads>
struct DrawShared {
  static constexpr int kParts = kThreads / kWarpLanes;
  double sums[kThreads], parts[kParts];
  uint32_t keys[kThreads];
  int32_t ids[kThreads];
  // Of the draw: whose stretch of ids it falls into, and the weight in front of that.
  int owner;
  double before;
};

// Finite numbers in their order; zeros of both signs are equal.
LLAVA_DEVICE uint32_t OrderOf(float x) {
  const uint32_t bits = BitsOf(x + 0.0f);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

// The sum of what the threads have, the same in each of them.
template <class Block>
LLAVA_DEVICE double Total(Block& block, DrawShared<Block::kThreads>& shared,
                          typename Block::template PerThread<double>& values) {
  constexpr int kParts = DrawShared<Block::kThreads>::kParts;
  block.Each([&](int thread) { shared.sums[thread] = values[thread]; });
  block.Sync();
  block.Each([&](int thread) {
    if (thread >= kParts) return;
    double sum = 0;
    for (int i = 0; i < kWarpLanes; ++i) sum += shared.sums[thread * kWarpLanes + i];
    shared.parts[thread] = sum;
  });
  block.Sync();
  block.Each([&](int thread) {
    double sum = 0;
    for (int i = 0; i < kParts; ++i) sum += shared.parts[i];
    values[thread] = sum;
  });
  return values[0];
}

// One block a row.
template <class Block>
LLAVA_DEVICE void DrawBody(Block& block, DrawShared<Block::kThreads>& shared,
                           const DrawArgs& args) {
  constexpr int kThreads = Block::kThreads;
  const float* const logits = args.logits + block.x() * args.stride;
  const int width = args.width;
  block.AwaitEarlier();
  const DrawRow row = args.rows[block.x()];

  // The best, the first of equals; and whether all are finite.
  typename Block::template PerThread<double> sum;
  block.Each([&](int thread) {
    uint32_t best = 0;
    int id = 0;
    double broken = 0;
    for (int i = thread; i < width; i += kThreads) {
      const uint32_t key = OrderOf(logits[i]);
      if ((BitsOf(logits[i]) & 0x7f800000u) == 0x7f800000u) broken = 1;
      if (key > best) {
        best = key;
        id = i;
      }
    }
    shared.keys[thread] = best;
    shared.ids[thread] = id;
    sum[thread] = broken;
  });
  const bool broken = Total(block, shared, sum) > 0;
  block.Each([&](int thread) {
    if (thread > 0) return;
    for (int i = 1; i < kThreads; ++i) {
      if (shared.keys[i] > shared.keys[0] ||
          (shared.keys[i] == shared.keys[0] && shared.ids[i] < shared.ids[0])) {
        shared.keys[0] = shared.keys[i];
        shared.ids[0] = shared.ids[i];
      }
    }
    args.ids[block.x()] = broken ? -1 : shared.ids[0];
  });
  if (broken || row.temperature == 0) return;
  block.Sync();
  const double largest = logits[shared.ids[0]], temperature = row.temperature;
  const auto weight = [&](int i) { return exp((logits[i] - largest) / temperature); };
  // The sum of `value` over the ids.
  const auto sum_of = [&](const auto& value) {
    block.Each([&](int thread) {
      sum[thread] = 0;
      for (int i = thread; i < width; i += kThreads) sum[thread] += value(i);
    });
    return Total(block, shared, sum);
  };
  // The largest key for which what `value` has from there upwards reaches `wanted`, bit by bit; 0
  // if even all is less.
  const auto reach = [&](double wanted, const auto& value) {
    uint32_t key = 0;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
      const uint32_t tried = key | bit;
      const double found =
          sum_of([&](int i) { return OrderOf(logits[i]) >= tried ? value(i) : 0.0; });
      if (found >= wanted) key = tried;
    }
    return key;
  };

  // Drawn is what is above `least`, and what equals it up to the id `last`.
  uint32_t least = 0;
  int last = width - 1;
  const auto is_drawn = [&](int i) {
    const uint32_t key = OrderOf(logits[i]);
    return key > least || (key == least && i <= last);
  };
  if (row.top_k > 0 && row.top_k < static_cast<uint32_t>(width)) {
    least = reach(row.top_k, [](int) { return 1.0; });
  }
  if (row.top_p < 1) {
    const double all = sum_of([&](int i) { return is_drawn(i) ? weight(i) : 0.0; });
    const double wanted = static_cast<double>(row.top_p) * all;
    const uint32_t key = reach(wanted, weight);
    if (key > least) least = key;
    const auto is_equal = [&](int i) { return OrderOf(logits[i]) == least; };
    if (sum_of([&](int i) { return is_equal(i) ? 1.0 : 0.0; }) > 1) {
      // Of equals as many as it takes, those with the lowest ids.
      const double above =
          sum_of([&](int i) { return OrderOf(logits[i]) > least ? weight(i) : 0.0; });
      for (int low = 0; low < last;) {
        const int middle = low + (last - low) / 2;
        const double equals =
            sum_of([&](int i) { return i <= middle && is_equal(i) ? weight(i) : 0.0; });
        if (above + equals >= wanted) {
          last = middle;
        } else {
          low = middle + 1;
        }
      }
    }
  }
  const auto mass = [&](int i) {
    if (!is_drawn(i)) return 0.0;
    const double x = weight(i);
    return x < static_cast<double>(row.min_p) ? 0.0 : x;
  };

  // The draw, along the ids: a stretch of them for each thread.
  const int stretch = (width + kThreads - 1) / kThreads;
  const auto stretch_end = [&](int thread) {
    const int end = (thread + 1) * stretch;
    return end < width ? end : width;
  };
  const double rest = row.uniform * sum_of(mass);
  block.Each([&](int thread) {
    double own = 0;
    for (int i = thread * stretch; i < stretch_end(thread); ++i) own += mass(i);
    shared.sums[thread] = own;
  });
  block.Sync();
  block.Each([&](int thread) {
    if (thread > 0) return;
    shared.owner = -1;  // rounding ate the last sliver: the best stays
    double before = 0;
    for (int i = 0; i < kThreads && shared.owner < 0; ++i) {
      if (before + shared.sums[i] > rest) {
        shared.owner = i;
        shared.before = before;
      }
      before += shared.sums[i];
    }
  });
  block.Sync();
  block.Each([&](int thread) {
    if (thread != shared.owner) return;
    double before = shared.before;
    int id = -1;
    for (int i = thread * stretch; i < stretch_end(thread) && before <= rest; ++i) {
      const double x = mass(i);
      if (x == 0) continue;
      id = i;
      before += x;
    }
    args.ids[block.x()] = id;
  });
}

struct DrawKernel {
  static constexpr int kThreads = 512;
  using Shared = DrawShared<kThreads>;
  DrawArgs args;
  template <class Block>
  LLAVA_DEVICE void operator()(Block& block, Shared& shared) const {
    DrawBody(block, shared, args);
  }
};

template <class Launcher>
void DispatchDraw(const Launcher& launch, const DrawArgs& args, int64_t rows) {
  if (args.width < 1 || args.stride < args.width) {
    throw std::invalid_argument("no draw from " + std::to_string(args.width) + " of " +
                                std::to_string(args.stride) + " logits");
  }
  launch(DrawKernel{args}, Grid{rows});
}

}  // namespace llava::cuda
