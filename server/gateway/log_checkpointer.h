#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "server/gateway/sqlite.h"
#include "server/runtime/mutex.h"

namespace llava {

// Brings the log of a database into its tables, with a connection and a thread of its own, so that
// no commit waits for it. The log's file is then written from its begin again: bytes that are there
// already are synced more cheaply than a file that grows. Thread-safe.
class LogCheckpointer {
 public:
  // `done` is told what became of each time that the log was worked on, by the thread.
  using Done = std::function<void(const absl::Status&)>;
  static absl::StatusOr<std::unique_ptr<LogCheckpointer>> Open(const std::string& database_path,
                                                               Done done);
  ~LogCheckpointer();

  // The log has so many pages after a commit. True: it has grown so far although it was worked on,
  // as commits follow each other without a gap: the writer shall see to the rest itself, now.
  bool OnCommit(int log_pages);

 private:
  LogCheckpointer(std::unique_ptr<SqlDatabase> database, Done done);
  void Loop();

  const std::unique_ptr<SqlDatabase> database_;  // of the thread
  const Done done_;
  Mutex mutex_;
  CondVar changed_;
  bool wanted_ LLAVA_GUARDED_BY(mutex_) = false;
  bool working_ LLAVA_GUARDED_BY(mutex_) = false;
  bool closing_ LLAVA_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace llava
