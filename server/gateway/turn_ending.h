#pragma once

// What becomes of a turn that ends: what is stored, and what its readers are told.

#include <chrono>
#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/running_turns.h"

namespace llava {

// Workers that one turn may cost.
inline constexpr int kMaxDeaths = 2;
// Processes of the gateway that may die while they take one turn up, before it has a new word.
inline constexpr int kMaxTries = 2;

struct TurnDeadlines {
  std::chrono::system_clock::time_point client;
  std::chrono::system_clock::time_point turn;  // the client's or --request-timeout
};

struct TurnEnding {
  v1::TurnState state = v1::TURN_STATE_FAILED;
  v1::FinishReason reason = v1::FINISH_REASON_ERROR;
  absl::Status status;  // OK: readers get turn_finished
  std::string message;  // stored as the turn's error, where the status has none
  // Nothing is stored: the turn stays running there, and the next process goes on with it.
  bool suspended = false;
};

// STOP, LENGTH or CONTEXT.
TurnEnding FinishedEnding(v1::FinishReason reason);
// Not OK. DEADLINE_EXCEEDED says whose deadline it was, and that `text_bytes` are kept.
TurnEnding FailedEnding(const absl::Status& status, const TurnDeadlines& deadlines,
                        size_t text_bytes);
// `kept`: turns of sessions can be gone on with later.
TurnEnding BrokenEnding(TurnBreak why, const TurnDeadlines& deadlines, bool kept);
// The version that wrote the beginning is gone.
TurnEnding InterruptedEnding(const v1::ModelVersion& model);
// kMaxDeaths workers died over it.
TurnEnding QuarantinedEnding();
// kMaxTries processes died over it.
TurnEnding GivenUpEnding();

}  // namespace llava
