// How the answers of a worker go on and end.

#include <chrono>
#include <exception>
#include <span>
#include <string>

#include "server/llm/engine_worker.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// A caller whose deadline is so near hung up because of it: its clock and ours race.
constexpr std::chrono::milliseconds kDeadlineSlack{25};

}  // namespace

bool EngineWorker::Deliver(Sequence& sequence, int32_t drawn, std::span<const float> logits) {
  absl::Status status;
  try {
    status = drawn == StepLogits::kNotDrawn ? sequence.Take(logits, Clock::now())
                                            : sequence.TakeDrawn(drawn, Clock::now());
  } catch (...) {
    status = absl::InternalError(FromException(std::current_exception()).message());
  }
  if (absl::IsCancelled(status)) {
    FailGone(sequence);
    return true;
  }
  if (!status.ok()) {
    if (sequence.refused_logits()) {
      ++engine_.nan_outputs_;
      metrics_.nan_logits.Increment();
    }
    Fail(sequence, status, "error", /*keep_blocks=*/!sequence.refused_logits());
    return true;
  }
  metrics_.generated_tokens.Increment();
  if (const auto seconds = sequence.mask_seconds()) metrics_.mask_seconds.Observe(*seconds);
  if (!sequence.complete()) sequence.table.rows.push_back(RowKey::Token(sequence.last_token()));
  if (sequence.first_token()) {
    metrics_.time_to_first_token_seconds.Observe(sequence.last_gap_seconds());
    metrics_.prefill_seconds.Observe(sequence.prefill_seconds());
  } else {
    metrics_.time_between_tokens_seconds.Observe(sequence.last_gap_seconds());
  }
  if (sequence.complete()) Finish(sequence, false);
  return sequence.complete();
}

void EngineWorker::Finish(Sequence& sequence, bool late) {
  const AnswerSummary summary = sequence.Finish(late, Clock::now());
  Leave(sequence, ToString(summary.end), /*keep_blocks=*/true);
  sequence.job().sink->Finished(summary);  // last: who hears of the end finds it accounted for
}

void EngineWorker::FailGone(Sequence& sequence) {
  if (sequence.job().deadline <= Clock::now() + kDeadlineSlack) {
    Fail(sequence, absl::DeadlineExceededError("the deadline passed"), "deadline");
  } else {
    Fail(sequence, absl::CancelledError("the client is gone"), "cancelled");
  }
}

void EngineWorker::Fail(Sequence& sequence, const absl::Status& status, const char* reason,
                        bool keep_blocks) {
  if (absl::IsInternal(status)) {
    LogError("answer failed", {{"request_id", sequence.job().request_id},
                               {"session_id", sequence.job().session_id},
                               {"error", std::string(status.message())}});
  }
  Leave(sequence, reason, keep_blocks);
  sequence.job().sink->Failed(status);
}

void EngineWorker::Leave(Sequence& sequence, const std::string& reason, bool keep_blocks) {
  SetPaused(sequence, false);
  GiveBack(sequence, keep_blocks);
  engine_.Left(sequence.job().received, reason);
  ShowBlocks();
}

void EngineWorker::FailStepped(const absl::Status& status) {
  for (const auto& sequence : failed_) Fail(*sequence, status, "error", /*keep_blocks=*/false);
  failed_.clear();
}

void EngineWorker::FailAll(const absl::Status& status) {
  FailStepped(status);
  for (const auto& sequence : running_) Fail(*sequence, status, "error");
  running_.clear();
}

void EngineWorker::Abandon() {
  for (const auto* sequences : {&running_, &failed_}) {
    for (const auto& sequence : *sequences) {
      engine_.Left(sequence->job().received, "error");
      sequence->job().sink->Failed(absl::UnavailableError("llm: the worker of this answer hangs"));
    }
  }
  if (warming_) engine_.WarmDone();
  SetBusy(false);
}

}  // namespace llava
