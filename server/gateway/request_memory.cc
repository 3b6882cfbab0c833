#include "server/gateway/request_memory.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kRetry{1000};

}  // namespace

RequestMemory::RequestMemory(uint64_t limit, Metrics& metrics)
    : limit_(limit),
      gauge_(metrics.Gauge("llava_gateway_request_bytes",
                           "Bytes of uploads, questions and other requests in memory.")) {}

RequestMemory::Share::~Share() {
  if (counted_ == 0) return;
  MutexLock lock(memory_.mutex_);
  memory_.used_ -= counted_;
  memory_.gauge_.Set(static_cast<double>(memory_.used_));
  const auto by_key = memory_.used_by_.find(key_);
  if (by_key != memory_.used_by_.end() && (by_key->second -= counted_) == 0) {
    memory_.used_by_.erase(by_key);
  }
}

absl::Status RequestMemory::Share::Hold(uint64_t bytes, const std::string& key) {
  const uint64_t counted = bytes - std::min(bytes, free_bytes_);
  if (counted <= counted_) return absl::OkStatus();
  const uint64_t more = counted - counted_;
  MutexLock lock(memory_.mutex_);
  const uint64_t room = memory_.limit_ - memory_.used_;
  if (more > room) {
    return OverloadedError(
        absl::StrCat("uploads and questions fill the ", memory_.limit_,
                     " bytes that this gateway holds of them (--request-bytes); try again later"),
        kRetry);
  }
  if (!key.empty()) {
    const auto found = memory_.used_by_.find(key);
    const uint64_t used = found == memory_.used_by_.end() ? 0 : found->second;
    if (used > counted_ && used + more > room - more) {
      return LimitError(
          absl::StrCat("the requests of the API key \"", key, "\" hold ", used, " bytes, ", room,
                       " of --request-bytes are left for all others; wait for some of them to end"),
          kRetry);
    }
    memory_.used_by_[key] = used + more;
    key_ = key;
  }
  counted_ = counted;
  memory_.used_ += more;
  memory_.gauge_.Set(static_cast<double>(memory_.used_));
  return absl::OkStatus();
}

}  // namespace llava
