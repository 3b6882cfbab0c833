#pragma once

// Who is at work on which session: one turn at a time.

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/turn_reader.h"
#include "server/runtime/mutex.h"

namespace llava {

// Why an answer is broken off from outside.
enum class TurnBreak {
  kClientGone,
  kCancelTurn,
  // Nobody read it for longer than --resume-grace.
  kAbandoned,
  // A turn of a session stays in the journal; the next process goes on with it.
  kShutdown,
  // What was told could not be kept.
  kJournalFault
};

// A turn at work, as others may touch it. Thread-safe.
class RunningTurn {
 public:
  virtual ~RunningTurn() = default;
  virtual void Break(TurnBreak why) = 0;
  // One more reader; on an error it is still the caller's.
  virtual absl::Status Attach(TurnReader reader, const ResumePoint& from) = 0;
  // What it was asked by.
  virtual const RequestKey& request_key() const = 0;
  // Time has passed: breaks itself off when nobody has read it for too long.
  virtual void CheckReaders(std::chrono::steady_clock::time_point now) = 0;
};

// Thread-safe; calls to turns and callbacks run outside of its lock.
class RunningTurns {
 public:
  // Takes `key` (a session id, or any unique text for a call without session) until Remove. ABORTED
  // when it is taken. Without a turn it keeps turns away while the session is being changed or
  // deleted, and cannot be broken off.
  absl::Status Add(const std::string& key, const std::string& turn_id,
                   std::shared_ptr<RunningTurn> turn);
  // For turns of an earlier process: takes `key` as soon as it is free, in the order of the calls,
  // and nobody else gets it in between. `start` runs then, within this call or a Remove.
  void AddInLine(const std::string& key, const std::string& turn_id,
                 std::shared_ptr<RunningTurn> turn, std::function<void()> start);
  // Gives it back and runs what waited for that. Not `over`: the turn is left to the next process.
  void Remove(const std::string& key, bool over = true);

  // Null: no such turn is running. An empty `turn_id` means whichever it is.
  std::shared_ptr<RunningTurn> Find(const std::string& key, const std::string& turn_id);
  // The turn of `key` if it was asked by the same request; null: it was not, or none is running.
  // INVALID_ARGUMENT: the request's name is that of another one.
  absl::StatusOr<std::shared_ptr<RunningTurn>> FindRepeated(const std::string& key,
                                                            const RequestKey& request);
  bool Taken(const std::string& key);

  // Breaks off the turn of `key`, if `turn_id` is empty or its own. `ended` runs after its Remove,
  // and is told whether it is over. False: no such turn is running, and `ended` will not run.
  bool Break(const std::string& key, const std::string& turn_id, TurnBreak why,
             std::function<void(bool over)> ended);
  void BreakAll(TurnBreak why);
  void CheckReaders();

 private:
  struct Next {
    std::string turn_id;
    std::shared_ptr<RunningTurn> turn;
    std::function<void()> start;
  };
  struct Entry {
    std::string turn_id;
    std::shared_ptr<RunningTurn> turn;
    std::vector<std::function<void(bool over)>> waiting = {};  // for its end
    std::deque<Next> line = {};
  };

  std::vector<std::shared_ptr<RunningTurn>> All();

  Mutex mutex_;
  std::map<std::string, Entry> entries_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
