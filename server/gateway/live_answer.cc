#include "server/gateway/live_answer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/call_fault.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

v1::ChatEvent StartedEvent(const v1::TurnStarted& started) {
  v1::ChatEvent event;
  *event.mutable_turn_started() = started;
  return event;
}

v1::ChatEvent FinishedEvent(const v1::TurnFinished& finished) {
  v1::ChatEvent event;
  *event.mutable_turn_finished() = finished;
  return event;
}

}  // namespace

std::shared_ptr<LiveAnswer> LiveAnswer::Create(size_t max_backlog_bytes,
                                               std::function<void()> on_alone) {
  return std::shared_ptr<LiveAnswer>(new LiveAnswer(max_backlog_bytes, std::move(on_alone)));
}

void LiveAnswer::Restore(std::string text, std::vector<uint64_t> taken_up) {
  MutexLock lock(mutex_);
  text_ = std::move(text);
  taken_up_ = std::move(taken_up);
}

void LiveAnswer::Begin(const v1::TurnStarted& started) {
  MutexLock lock(mutex_);
  started_ = started;
  started_->set_restarts(static_cast<uint32_t>(taken_up_.size()));
  for (const TurnReader& reader : readers_) {
    reader.sink->Send(StartedEvent(*started_));
    SendText(*reader.sink, text_, 0);
  }
}

void LiveAnswer::Add(v1::TextDelta delta) {
  std::vector<TurnReader> slow;
  uint64_t end = 0;
  {
    MutexLock lock(mutex_);
    text_ += delta.text();
    end = text_.size();
    if (max_backlog_bytes_ > 0) {
      const auto behind = [this](const TurnReader& reader) {
        return reader.sink->Backlog() > max_backlog_bytes_;
      };
      for (size_t i = 0; i < readers_.size();) {
        if (behind(readers_[i])) {
          slow.push_back(std::move(readers_[i]));
          readers_.erase(readers_.begin() + static_cast<std::ptrdiff_t>(i));
        } else {
          ++i;
        }
      }
      if (!slow.empty() && readers_.empty()) alone_since_ = Clock::now();
    }
    for (size_t i = 0; i < readers_.size(); ++i) {
      v1::ChatEvent event;
      if (i + 1 < readers_.size()) {
        *event.mutable_text() = delta;
      } else {
        *event.mutable_text() = std::move(delta);
      }
      readers_[i].sink->Send(std::move(event));
    }
  }
  for (const TurnReader& reader : slow) {
    reader.End(CallersFault(OverloadedError(
        absl::StrCat("this reader is more than ", max_backlog_bytes_,
                     " bytes behind; the answer goes on: read the rest, now at byte ", end,
                     ", with ResumeTurn"),
        std::chrono::milliseconds(100))));
  }
}

void LiveAnswer::End(const absl::Status& status, const v1::TurnFinished& finished) {
  std::vector<TurnReader> readers;
  {
    MutexLock lock(mutex_);
    if (ended_) return;
    ended_ = status;
    finished_ = finished;
    readers.swap(readers_);
    if (status.ok()) {
      for (const TurnReader& reader : readers) reader.sink->Send(FinishedEvent(finished));
    }
  }
  for (const TurnReader& reader : readers) reader.End(status);
}

absl::Status LiveAnswer::Attach(TurnReader reader, const ResumePoint& from) {
  const std::shared_ptr<TurnSink> sink = reader.sink;
  std::optional<absl::Status> ended;
  {
    MutexLock lock(mutex_);
    if (auto status = CheckResumePoint(from, text_, taken_up_); !status.ok()) return status;
    if (started_) {
      sink->Send(StartedEvent(*started_));
      SendText(*sink, text_, from.after_offset);
    }
    ended = ended_;
    if (!ended) {
      readers_.push_back(std::move(reader));
    } else if (ended->ok()) {
      sink->Send(FinishedEvent(finished_));
    }
  }
  if (ended) {
    reader.End(*ended);
    return absl::OkStatus();
  }
  sink->SetOnGone([weak = weak_from_this(), raw = sink.get()] {
    if (const auto self = weak.lock()) self->Leave(raw);
  });
  return absl::OkStatus();
}

std::vector<TurnReader> LiveAnswer::TakeReaders() {
  MutexLock lock(mutex_);
  return std::exchange(readers_, {});
}

void LiveAnswer::Leave(const TurnSink* sink) {
  std::optional<TurnReader> left;
  bool alone = false;
  {
    MutexLock lock(mutex_);
    const auto found =
        std::find_if(readers_.begin(), readers_.end(),
                     [sink](const TurnReader& reader) { return reader.sink.get() == sink; });
    if (found == readers_.end()) return;
    left = std::move(*found);
    readers_.erase(found);
    alone = readers_.empty();
    if (alone) alone_since_ = Clock::now();
  }
  left->End(absl::CancelledError("the client went away"));
  if (alone && on_alone_) on_alone_();
}

std::string LiveAnswer::text() const {
  MutexLock lock(mutex_);
  return text_;
}

std::optional<LiveAnswer::Clock::time_point> LiveAnswer::alone_since() const {
  MutexLock lock(mutex_);
  if (!readers_.empty()) return std::nullopt;
  return alone_since_;
}

}  // namespace llava
