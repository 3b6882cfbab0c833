#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "model/digest/sha256.h"
#include "server/gateway/backend_pool.h"
#include "server/runtime/mutex.h"

namespace llava {

// What is dropped and kept, the last ones: of a picture 32 bytes, of a session its id.
struct FeatureDropBounds {
  size_t waiting = 100'000;  // for processes that are down or behind
  size_t for_later = 2'000;  // when all have heard of them: for those that come later
};

// Has the services forget what was made of pictures that nobody holds any more, and language
// services what they keep of deleted sessions.
//
// A thread tells every process of both services, one after the other; one that is down or fails is
// told when it is back, at the same address or, as far as the last ones go, at another one. Who
// is told too much computes it again, no more. Thread-safe.
class FeatureDrops {
 public:
  // The pools must outlive it.
  FeatureDrops(const BackendPool& vision, const BackendPool& llm, FeatureDropBounds bounds = {});
  ~FeatureDrops();  // breaks off the call under way
  FeatureDrops(const FeatureDrops&) = delete;
  FeatureDrops& operator=(const FeatureDrops&) = delete;

  // Returns at once. `pictures`: ids, that is SHA-256 in hex.
  void Drop(const std::vector<std::string>& pictures,
            const std::vector<std::string>& sessions = {});
  // Pictures and sessions that are kept now.
  size_t kept() const;

 private:
  using Clock = CondVar::Clock;
  using Dropped = std::variant<Sha256Digest, std::string>;  // a picture, or the id of a session
  // How far one process has been told.
  struct Told {
    uint64_t dropped = 0;  // of all that ever were
    bool failed = false;
    Clock::time_point again{};  // not to be asked before
  };
  using Name = std::pair<bool, std::string>;  // encodes, address

  void Loop();
  // True: it may be told more at once.
  bool Tell(Backend& backend, bool encodes, Told& told);
  absl::Status Call(Backend& backend, bool encodes, const std::vector<Dropped>& all);

  const BackendPool& vision_;
  const BackendPool& llm_;
  const FeatureDropBounds bounds_;
  std::map<Name, Told> told_;  // of the thread

  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<Dropped> last_ LLAVA_GUARDED_BY(mutex_);  // of `dropped_`
  uint64_t dropped_ LLAVA_GUARDED_BY(mutex_) = 0;
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* calling_ LLAVA_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace llava
