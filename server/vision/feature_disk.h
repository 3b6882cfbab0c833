#pragma once

// The second tier of the feature cache: one file per picture in a folder, found again after any
// end of the process. Format: docs/vision.md.

#include <atomic>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/recent_bytes.h"
#include "server/vision/features.h"
#include "server/wire/feature_key.h"

namespace llava {

// A file is named by digests of its picture and of its key, becomes visible whole (rename) and
// carries checksums of everything in it, so what Read gives is what was written under that very
// key, whoever else uses the folder. Faults of the disk are counted and cost speed only.
// Thread-safe.
class FeatureDisk {
 public:
  struct Options {
    std::filesystem::path folder;
    uint64_t budget_bytes = 4ull << 30;  // files, whoever wrote them; least recently used go first
    size_t queue = 64;                   // pictures that wait to be written; more are not kept
  };

  // Makes the folder if it is not there, learns what is in it, starts the writing thread.
  FeatureDisk(Options options, Metrics& metrics);
  // Writes what waits.
  ~FeatureDisk();

  // Blocks on the disk. Null: not there, or damaged (then the file is removed).
  std::shared_ptr<const Features> Read(const std::string& key);
  // Never blocks: a thread writes it later, if it is not there yet.
  void Write(std::shared_ptr<const Features> features);
  // The number of files that were there, or UNAVAILABLE: some may still be.
  using Dropped = std::function<void(absl::StatusOr<size_t>)>;
  // From now on nothing that was written before is read for these pictures; the thread removes the
  // files, of other processes too, and calls `done`. Requests that wait behind each other are done
  // together, all with the same result.
  void Drop(const PictureSet& pictures, Dropped done);
  // Waits until all that was asked for is done.
  void Flush();

  uint64_t size_bytes() const;
  size_t entries() const;
  v1::FeatureDiskStatus status() const;

 private:
  struct File {};  // there is no more to know
  struct Series {
    explicit Series(Metrics& metrics);
    prometheus::Gauge& bytes;
    prometheus::Gauge& entries;
    prometheus::Counter& hits;
    prometheus::Counter& misses;
    prometheus::Counter& writes;
    prometheus::Counter& evictions;
    prometheus::Counter& read_errors;
    prometheus::Counter& write_errors;
    prometheus::Counter& damaged;
    prometheus::Counter& skipped;
  };

  // What the thread does next: write features, or remove the files of pictures.
  struct Task {
    std::shared_ptr<const Features> features;
    PictureSet pictures = {};
    std::vector<Dropped> done = {};
  };

  void MakeFolder();
  void Scan();
  void WriteLoop();
  void Run(const Task& task);
  bool IsDropped(const std::string& key) const;
  absl::StatusOr<size_t> RemoveFiles(const PictureSet& pictures);
  std::shared_ptr<const Features> ReadFile(const std::string& key);
  void WriteFile(const Features& features);
  // 0 or errno.
  int WriteNew(const std::filesystem::path& path, std::string_view bytes);
  void Evict() { EvictTo(options_.budget_bytes); }
  void EvictTo(uint64_t bytes);
  // Accounts for a file that was read or written just now.
  void Touch(const std::string& name, uint64_t bytes);
  void Forget(const std::string& name);
  void Show() LLAVA_REQUIRES(mutex_);
  void CountError(prometheus::Counter& counter, const std::string& what);

  const Options options_;
  Series series_;
  std::atomic<bool> complained_ = false;  // one line of log per series of faults

  uint64_t written_since_scan_ = 0;  // the thread's

  mutable Mutex mutex_;
  CondVar changed_;
  RecentBytes<File> recent_ LLAVA_GUARDED_BY(mutex_);  // by name
  std::deque<Task> waiting_ LLAVA_GUARDED_BY(mutex_);
  std::multiset<std::string, std::less<>> dropped_ LLAVA_GUARDED_BY(mutex_);  // with tasks to do
  bool writing_ LLAVA_GUARDED_BY(mutex_) = false;
  bool closed_ LLAVA_GUARDED_BY(mutex_) = false;

  std::thread writer_;  // last
};

}  // namespace llava
