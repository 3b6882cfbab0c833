#include <cstdint>

#include "client/chat/report.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

v1::TurnFinished TurnWith(v1::FinishReason reason, uint32_t tokens, double first, double decode) {
  v1::TurnFinished finished;
  finished.set_reason(reason);
  finished.mutable_usage()->set_generated_tokens(tokens);
  finished.mutable_timings()->set_time_to_first_token_seconds(first);
  finished.mutable_timings()->set_decode_seconds(decode);
  return finished;
}

TEST(ClosingLine, CountsTheTokensBehindTheFirst) {
  EXPECT_EQ(ClosingLine(TurnWith(v1::FINISH_REASON_STOP, 21, 0.5, 2.0)),
            "0.50 s to first token, 10.0 tokens/s, 21 tokens");
}

TEST(ClosingLine, LeavesOutWhatIsUnknown) {
  EXPECT_EQ(ClosingLine(TurnWith(v1::FINISH_REASON_STOP, 1, 0.5, 0)),
            "0.50 s to first token, 1 token");
  EXPECT_EQ(ClosingLine(TurnWith(v1::FINISH_REASON_CANCELLED, 0, 0, 0)), "0 tokens (stopped)");
}

TEST(ClosingLine, TellsWhyAnAnswerIsNotWhole) {
  EXPECT_EQ(ClosingLine(TurnWith(v1::FINISH_REASON_LENGTH, 2, 0.1, 0.1)),
            "0.10 s to first token, 10.0 tokens/s, 2 tokens (cut off at the token limit)");
}

TEST(ErrorLine, NeverEmpty) {
  EXPECT_EQ(ErrorLine(absl::Status(absl::StatusCode::kInternal, "")), "INTERNAL");
  EXPECT_EQ(ErrorLine(absl::NotFoundError("no session x")), "no session x");
}

}  // namespace
}  // namespace llava
