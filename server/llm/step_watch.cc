#include "server/llm/step_watch.h"

namespace llava {

void StepWatch::Leave() {
  MutexLock lock(mutex_);
  calling_ = false;
  if (given_up_) throw WorkerGivenUp();
}

void StepWatch::Run(const std::function<void()>& call) {
  {
    MutexLock lock(mutex_);
    calling_ = true;
    since_ = Clock::now();
  }
  try {
    call();
  } catch (...) {
    Leave();
    throw;
  }
  Leave();
}

bool StepWatch::GiveUpIfLonger(Clock::duration limit, const std::function<void()>& on_give_up) {
  MutexLock lock(mutex_);
  if (!calling_ || given_up_ || Clock::now() - since_ <= limit) return false;
  given_up_ = true;
  on_give_up();
  return true;
}

}  // namespace llava
