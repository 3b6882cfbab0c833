#pragma once

// Who gets the events of a turn, and from where.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/store_records.h"

namespace llava {

// Where the events of a turn go. Thread-safe; Close once, nothing after it.
class TurnSink {
 public:
  virtual ~TurnSink() = default;
  virtual void Send(v1::ChatEvent event) = 0;
  virtual void Close(const absl::Status& status) = 0;
  // Bytes sent that the client has not taken yet.
  virtual size_t Backlog() const { return 0; }
  // `on_gone` runs at most once, when the client goes away: at once if it has gone before.
  virtual void SetOnGone(std::function<void()> on_gone) {}
};

// One reader of a turn. `on_end` runs once, right before its sink is closed with the same status.
struct TurnReader {
  std::shared_ptr<TurnSink> sink;
  std::function<void(const absl::Status&)> on_end;

  void End(const absl::Status& status) const {
    if (on_end) on_end(status);
    sink->Close(status);
  }
};

// Where a reader goes on.
struct ResumePoint {
  uint64_t after_offset = 0;
  std::optional<uint32_t> restarts;  // TurnStarted.restarts of what the reader has
};

// OUT_OF_RANGE, DATA_LOSS (see ResumeTurn) or INVALID_ARGUMENT (within a character).
absl::Status CheckResumePoint(const ResumePoint& from, std::string_view text,
                              const std::vector<uint64_t>& taken_up);

// Sends `text` behind byte `offset` in pieces that no message limit minds.
void SendText(TurnSink& sink, std::string_view text, uint64_t offset);

// Sends a turn that has ended, as it came, and ends the reader.
void ReplayTurn(const StoredTurn& stored, const TurnReader& reader, const ResumePoint& from);

}  // namespace llava
