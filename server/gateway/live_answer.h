#pragma once

// The text of an answer in the making, and all who read it.

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/turn_reader.h"
#include "server/runtime/mutex.h"

namespace llava {

// Thread-safe. Every reader gets the same events in order: those from before it came as one, then
// each as it comes. Readers that are too far behind are sent away (UNAVAILABLE with RetryInfo: they
// may resume), the text goes on.
class LiveAnswer : public std::enable_shared_from_this<LiveAnswer> {
 public:
  using Clock = std::chrono::steady_clock;

  // `max_backlog_bytes` 0: readers are never sent away. `on_alone`: the last reader went away by
  // itself; it must not be called back by what it calls.
  static std::shared_ptr<LiveAnswer> Create(size_t max_backlog_bytes,
                                            std::function<void()> on_alone);

  // What an earlier process has told of it. Before all else.
  void Restore(std::string text, std::vector<uint64_t> taken_up);

  void Begin(const v1::TurnStarted& started);
  void Add(v1::TextDelta delta);
  // OK: `finished` goes to all; else the status. Later readers get the same.
  void End(const absl::Status& status, const v1::TurnFinished& finished);

  // Errors are those of CheckResumePoint; the reader is then still the caller's.
  absl::Status Attach(TurnReader reader, const ResumePoint& from);
  // Gives up all readers, for another answer to take.
  std::vector<TurnReader> TakeReaders();

  std::string text() const;
  // Since when nobody reads; nothing while somebody does.
  std::optional<Clock::time_point> alone_since() const;

 private:
  LiveAnswer(size_t max_backlog_bytes, std::function<void()> on_alone)
      : max_backlog_bytes_(max_backlog_bytes), on_alone_(std::move(on_alone)) {}

  void Leave(const TurnSink* sink);

  const size_t max_backlog_bytes_;
  const std::function<void()> on_alone_;

  // Held while events are handed to sinks, which queue them: order is theirs who hold it.
  mutable Mutex mutex_;
  std::vector<TurnReader> readers_ LLAVA_GUARDED_BY(mutex_);
  std::optional<v1::TurnStarted> started_ LLAVA_GUARDED_BY(mutex_);
  std::string text_ LLAVA_GUARDED_BY(mutex_);
  std::vector<uint64_t> taken_up_ LLAVA_GUARDED_BY(mutex_);
  std::optional<absl::Status> ended_ LLAVA_GUARDED_BY(mutex_);
  v1::TurnFinished finished_ LLAVA_GUARDED_BY(mutex_);
  Clock::time_point alone_since_ LLAVA_GUARDED_BY(mutex_) = Clock::now();
};

}  // namespace llava
