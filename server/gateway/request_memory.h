#pragma once

// What requests hold in memory, all together.

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "server/runtime/body_budget.h"
#include "server/runtime/metrics.h"

namespace llava {

// One budget for the pictures that are being uploaded and for questions with their pictures, while
// these wait and are answered. Thread-safe; outlives its shares.
class RequestMemory {
 public:
  RequestMemory(uint64_t limit, Metrics& metrics);

  // What one request holds; gives it back at its end. One thread at a time.
  class Share {
   public:
    explicit Share(RequestMemory& memory) : memory_(memory), share_(memory.budget_) {}
    ~Share();
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // Holds `bytes` from now on, if that is more than before; the first 16 KiB do not count, so
    // that short questions pass. UNAVAILABLE with RetryInfo: there is no room for them.
    absl::Status Hold(uint64_t bytes);

   private:
    RequestMemory& memory_;
    BodyBudget::Share share_;
    uint64_t counted_ = 0;
  };

  std::shared_ptr<Share> NewShare() { return std::make_shared<Share>(*this); }

 private:
  const uint64_t limit_;
  const std::shared_ptr<BodyBudget> budget_;
  prometheus::Gauge& gauge_;
};

}  // namespace llava
