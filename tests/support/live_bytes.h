#pragma once

// How much memory the tensors of a piece of code take, on the CPU.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

namespace llava {

// Counts what LibTorch allocates on this thread while it lives. What was there before is not
// counted when it goes.
class LiveBytes {
 public:
  int64_t now() const { return counter_->now; }
  // Of `now` since the last call.
  int64_t TakePeak() { return std::exchange(counter_->peak, counter_->now); }

 private:
  struct Counter : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
      now += bytes;
      peak = std::max(peak, now);
    }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t now = 0, peak = 0;
  };

  const std::shared_ptr<Counter> counter_ = std::make_shared<Counter>();
  const c10::DebugInfoGuard guard_{c10::DebugInfoKind::PROFILER_STATE, counter_};
};

}  // namespace llava
