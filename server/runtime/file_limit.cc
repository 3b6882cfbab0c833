#include "server/runtime/file_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>

namespace llava {
namespace {

// For store, journal and pictures, gRPC's connections on both sides, and what libraries open.
constexpr uint64_t kOwnFiles = 512;

}  // namespace

uint64_t RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return std::numeric_limits<uint64_t>::max();
  if (limit.rlim_cur < limit.rlim_max) {
    rlimit raised = limit;
    raised.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  return limit.rlim_cur;
}

int ConnectionsWithin(uint64_t files) {
  const uint64_t most = files > 2 * kOwnFiles ? files - kOwnFiles : files / 2;
  return static_cast<int>(
      std::clamp<uint64_t>(most, 1, static_cast<uint64_t>(std::numeric_limits<int>::max())));
}

}  // namespace llava
