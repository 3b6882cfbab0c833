#include "client/bench/answer_calls.h"

#include <utility>

namespace llava::bench {

bool AnswerCalls::Enter(Call call) {
  std::lock_guard lock(mutex_);
  if (!cancelled_) calls_.insert(std::move(call));
  return !cancelled_;
}

bool AnswerCalls::Leave(const Call& call, const absl::Status& status) {
  std::lock_guard lock(mutex_);
  calls_.erase(call);
  return cancelled_ && absl::IsCancelled(status);
}

void AnswerCalls::CancelAll() {
  std::set<Call> calls;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(cancelled_, true)) return;
    calls = calls_;
  }
  // Without the lock: their ends may come on this thread.
  for (const Call& call : calls) call->TryCancel();
}

}  // namespace llava::bench
