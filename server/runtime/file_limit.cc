#include "server/runtime/file_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>

namespace llava {
namespace {

// For store, journal and pictures, connections to other services, and what libraries open.
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

ConnectionShares ShareConnections(uint64_t files, int http) {
  const int all = ConnectionsWithin(files);
  const int most = std::max(1, all - all / 4);
  ConnectionShares shares;
  shares.http = std::min(http, most);
  shares.grpc = std::max(1, all - shares.http);
  return shares;
}

}  // namespace llava
