#pragma once

// A Block of model/ops/cuda/block.h on the host: the threads of a warp run in loops, phase by
// phase, and the warps of a block one after the other from barrier to barrier.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "model/ops/cuda/dispatch.h"
#include "tests/model/ops/warps.h"

namespace llava::cuda {

// Warps, the threads of a warp and blocks run from the last to the first.
inline bool backwards = false;

// The threads that run as one: those of a warp, or all.
struct Lanes {
  int first = 0, count = 0;
};
inline thread_local Lanes lanes;

// What has not been written yet: NaN, or indices far from anything.
template <class X>
void Poison(X& x) {
  static_assert(std::is_trivially_copyable_v<X>);
  std::memset(static_cast<void*>(&x), 0xff, sizeof x);
}

template <int kNumThreads>
class HostBlock {
 public:
  static constexpr int kThreads = kNumThreads;

  template <class X>
  class PerThread {
   public:
    PerThread() : first_(lanes.first), values_(static_cast<size_t>(lanes.count)) {
      for (X& value : values_) Poison(value);
    }
    X& operator[](int thread) { return values_.at(static_cast<size_t>(thread - first_)); }

   private:
    int first_;
    std::vector<X> values_;
  };

  // For the threads that `lanes` names.
  HostBlock(int x, int y, int z, int num_x, int num_y)
      : x_(x),
        y_(y),
        z_(z),
        num_x_(num_x),
        num_y_(num_y),
        first_(lanes.first),
        count_(lanes.count) {}
  int x() const { return x_; }
  int y() const { return y_; }
  int z() const { return z_; }
  int num_x() const { return num_x_; }
  int num_y() const { return num_y_; }

  template <class Phase>
  void Each(Phase&& phase) {
    for (int i = 0; i < count_; ++i) phase(first_ + (backwards ? count_ - 1 - i : i));
  }
  void Sync() {
    Warps::Sync();
    lanes = {first_, count_};
  }
  void AwaitEarlier() { ++waits_; }
  void LeaveIdle() { idle_ = true; }

  // Copies arrive as late as they may or, with threads that run backwards, at once.
  template <class X>
  void CopyLater(X* to, const void* from, bool there) {
    static_assert(sizeof(X) == 8 || sizeof(X) == 16);
    if (reinterpret_cast<uintptr_t>(to) % sizeof(X) != 0 ||
        reinterpret_cast<uintptr_t>(from) % sizeof(X) != 0) {
      throw std::logic_error("a copy of " + std::to_string(sizeof(X)) +
                             " bytes from or to where it cannot be");
    }
    const Copy copy{to, there ? from : nullptr, sizeof(X)};
    if (backwards) {
      copy.Do();
    } else {
      open_.push_back(copy);
    }
  }
  void CloseCopies() { groups_.push_back(std::exchange(open_, {})); }
  template <int kOpen>
  void AwaitCopies() {
    while (groups_.size() > kOpen) {
      for (const Copy& copy : groups_.front()) copy.Do();
      groups_.pop_front();
    }
  }
  int waits() const { return waits_; }
  bool idle() const { return idle_; }
  template <int kLanes, int N>
  void Sum(PerThread<Array<float, N>>& values) {
    static_assert(kThreads % kWarpLanes == 0 && kLanes <= kWarpLanes);
    for (int step = kLanes / 2; step > 0; step /= 2) {
      PerThread<Array<float, N>> before = values;
      for (int thread = first_; thread < first_ + count_; ++thread) {
        for (int i = 0; i < N; ++i) values[thread][i] += before[thread ^ step][i];
      }
    }
  }

  template <int kSteps, bool kAdds = false>
  void Multiply(PerThread<Array<float, 8>>& sums, PerThread<Array<uint32_t, 8 * kSteps>>& a,
                PerThread<Array<uint32_t, 2 * kSteps>>& b) {
    for (int first = first_; first < first_ + count_; first += kWarpLanes) {
      float left[32][16 * kSteps], right[16 * kSteps][8];
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int step = 0; step < kSteps; ++step) {
          for (int i = 0; i < 8; ++i) {
            float* const to =
                &left[16 * (i / 4) + g + 8 * (i % 2)][16 * step + 2 * t + 8 * (i % 4 / 2)];
            const uint32_t pair = a[first + lane][8 * step + i];
            to[0] = FloatOf(pair << 16);
            to[1] = FloatOf(pair & 0xffff0000u);
          }
          for (int r = 0; r < 2; ++r) {
            const uint32_t pair = b[first + lane][2 * step + r];
            right[16 * step + 2 * t + 8 * r][g] = FloatOf(pair << 16);
            right[16 * step + 2 * t + 8 * r + 1][g] = FloatOf(pair & 0xffff0000u);
          }
        }
      }
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 8; ++i) {
          float sum = kAdds ? sums[first + lane][i] : 0;
          for (int k = 0; k < 16 * kSteps; ++k) {
            sum += left[16 * (i / 4) + g + 8 * (i % 4 / 2)][k] * right[k][2 * t + i % 2];
          }
          sums[first + lane][i] = sum;
        }
      }
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;  // null: zeros
    size_t bytes;
    void Do() const {
      if (from) {
        std::memcpy(to, from, bytes);
      } else {
        std::memset(to, 0, bytes);
      }
    }
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
  int x_, y_, z_, num_x_, num_y_;
  int first_, count_;
  int waits_ = 0;
  bool idle_ = false;
};

struct HostLauncher {
  // Few, so that blocks have several rounds.
  int Multiprocessors() const { return 3; }
  template <class Kernel>
  void operator()(const Kernel& kernel, const Grid& grid) const {
    std::atomic<bool> waited = grid.x * grid.y * grid.z == 0;  // warps may be threads
    for (int64_t index = 0; index < grid.x * grid.y * grid.z; ++index) {
      const int64_t i = backwards ? grid.x * grid.y * grid.z - 1 - index : index;
      struct alignas(128) Aligned {  // as CUDA's
        typename Kernel::Shared shared;
      };
      const auto memory = std::make_unique<Aligned>();
      auto* const shared = &memory->shared;
      Poison(*shared);
      const auto run = [&](int first, int count) {
        lanes = {first, count};
        HostBlock<Kernel::kThreads> block(static_cast<int>(i % grid.x),
                                          static_cast<int>(i / grid.x % grid.y),
                                          static_cast<int>(i / grid.x / grid.y),
                                          static_cast<int>(grid.x), static_cast<int>(grid.y));
        kernel(block, *shared);
        if (block.waits() != (block.idle() ? 0 : 1)) {
          throw std::logic_error("a block waits once for the kernels ahead, or leaves idle");
        }
        if (!block.idle()) waited = true;
      };
      if constexpr (Warps::kApart && Kernel::kThreads > kWarpLanes) {
        static_assert(Kernel::kThreads % kWarpLanes == 0);
        Warps::Run(Kernel::kThreads / kWarpLanes, backwards,
                   [&](int warp) { run(warp * kWarpLanes, kWarpLanes); });
      } else {
        run(0, Kernel::kThreads);
      }
    }
    if (!waited) throw std::logic_error("a kernel ends before those ahead of it");
  }
};

}  // namespace llava::cuda
