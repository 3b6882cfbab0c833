#include "server/gateway/request_memory.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr uint64_t kFreeBytes = 16u << 10;
constexpr std::chrono::milliseconds kRetry{1000};

}  // namespace

RequestMemory::RequestMemory(uint64_t limit, Metrics& metrics)
    : limit_(limit),
      budget_(std::make_shared<BodyBudget>(limit)),
      gauge_(metrics.Gauge("llava_gateway_request_bytes",
                           "Bytes of uploads and questions that are held in memory.")) {}

RequestMemory::Share::~Share() { memory_.gauge_.Decrement(static_cast<double>(counted_)); }

absl::Status RequestMemory::Share::Hold(uint64_t bytes) {
  const uint64_t counted = bytes - std::min(bytes, kFreeBytes);
  if (!share_.Grow(counted)) {
    return OverloadedError(
        absl::StrCat("uploads and questions fill the ", memory_.limit_,
                     " bytes that this gateway holds of them (--request-bytes); try again later"),
        kRetry);
  }
  if (counted > counted_) {
    memory_.gauge_.Increment(static_cast<double>(counted - counted_));
    counted_ = counted;
  }
  return absl::OkStatus();
}

}  // namespace llava
