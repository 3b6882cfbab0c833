#pragma once

#include <string>

#include "absl/status/status.h"
#include "llava/v1/chat.pb.h"

namespace llava {

// The line behind an answer: time to first token, speed, length, and why it ended if that was not
// its own end. Example: "0.21 s to first token, 38.5 tokens/s, 24 tokens".
std::string ClosingLine(const v1::TurnFinished& finished);

// An error in one line, with when to try again if the gateway says so.
std::string ErrorLine(const absl::Status& status);

}  // namespace llava
