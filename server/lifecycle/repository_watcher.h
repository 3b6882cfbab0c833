#pragma once

// Tells what is in a model repository, and tells it again whenever that changes.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "model/checkpoint/manifest.h"
#include "server/lifecycle/policy.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"

namespace llava {

// Looks at the repository when inotify says that something happened (events of a burst are one
// look), and every `poll_interval` besides: folders on the network say nothing, and a root that is
// not there yet cannot be watched. Root and models may be absent, deleted and made anew.
//
// Thread-safe. The callback runs on the watcher's own thread.
class RepositoryWatcher {
 public:
  struct Options {
    std::filesystem::path root;
    std::set<std::string> names;                    // models looked at; empty: all of `kind`
    std::optional<Manifest::Kind> kind;             // nothing: any
    std::chrono::milliseconds poll_interval{5000};  // 0: only when inotify says so
    std::chrono::milliseconds quiet{20};  // a burst of events has ended; looked at after 10 times
                                          // that at the latest
    bool inotify = true;                  // false: as on a folder of another host (tests)
  };
  // `look`: the number of this look, from 1. An error (nothing is readable) means: not known; it
  // is no reason to unload anything. A model that alone cannot be read stays as it was seen last.
  using OnLook =
      std::function<void(uint64_t look, const absl::StatusOr<RepositorySnapshot>& snapshot)>;

  // Nothing is looked at before Start.
  RepositoryWatcher(Options options, Metrics& metrics, OnLook on_look);
  ~RepositoryWatcher();

  void Start();
  // Returns when the thread has ended: at once, or when a look at a folder that does not answer
  // comes back.
  void Stop();
  // Looks again soon; returns the number of a look that begins after this call.
  uint64_t LookNow();

 private:
  class Inotify;
  void Run();
  // One look, with what was seen before of models that cannot be read.
  absl::StatusOr<RepositorySnapshot> Look();
  void TellUnreadable(const std::map<std::string, std::string>& now);

  const Options options_;
  const OnLook on_look_;
  prometheus::Counter &looks_event_, &looks_request_, &failed_looks_;
  prometheus::Counter* const looks_poll_;  // null, and not shown, if it does not poll
  std::unique_ptr<Inotify> inotify_;
  // Of the watcher's thread.
  RepositorySnapshot seen_;
  std::map<std::string, std::string> unreadable_;
  std::thread thread_;

  Mutex mutex_;
  bool stop_ LLAVA_GUARDED_BY(mutex_) = false;
  bool look_now_ LLAVA_GUARDED_BY(mutex_) = false;
  uint64_t begun_ LLAVA_GUARDED_BY(mutex_) = 0;  // looks
};

}  // namespace llava
