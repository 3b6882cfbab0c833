#include "server/llm/step_watch.h"

namespace llava {

void StepWatch::Leave() {
  MutexLock lock(mutex_);
  calling_ = false;
  if (given_up_) throw WorkerGivenUp();
}

void StepWatch::Run(const std::function<void()>& call) { Call(nullptr, call); }

void StepWatch::Load(const std::function<double()>& progress, const std::function<void()>& call) {
  Call(&progress, call);
}

void StepWatch::Call(const std::function<double()>* progress, const std::function<void()>& call) {
  {
    MutexLock lock(mutex_);
    progress_ = progress;
    if (progress != nullptr) seen_ = (*progress)();
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

bool StepWatch::GiveUpIfLonger(const Limits& limits,
                               const std::function<void(bool loads)>& on_give_up) {
  MutexLock lock(mutex_);
  if (!calling_ || given_up_) return false;
  const auto now = Clock::now();
  const bool loads = progress_ != nullptr;
  if (const double seen = loads ? (*progress_)() : 0; loads && seen != seen_) {
    seen_ = seen;
    since_ = now;
  }
  if (now - since_ <= (loads ? limits.load : limits.step)) return false;
  given_up_ = true;
  on_give_up(loads);
  return true;
}

}  // namespace llava
