#include "server/llm/disposal_thread.h"

#include <utility>

namespace llava {

DisposalThread::DisposalThread() : thread_([this] { Work(); }) {}

DisposalThread::~DisposalThread() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void DisposalThread::Post(std::function<void()> disposal) {
  MutexLock lock(mutex_);
  waiting_.push_back(std::move(disposal));
  changed_.NotifyAll();
}

bool DisposalThread::WaitUntilIdle(CondVar::Clock::time_point deadline) {
  MutexLock lock(mutex_);
  const auto idle = [this] { return !working_ && waiting_.empty(); };
  while (!idle()) {
    if (!changed_.WaitUntil(mutex_, deadline)) return idle();
  }
  return true;
}

void DisposalThread::Work() {
  while (true) {
    std::vector<std::function<void()>> disposals;
    {
      MutexLock lock(mutex_);
      working_ = false;
      changed_.NotifyAll();
      while (waiting_.empty() && !stopping_) changed_.Wait(mutex_);
      if (waiting_.empty()) return;
      disposals.swap(waiting_);
      working_ = true;
    }
    for (const auto& dispose : disposals) dispose();
  }
}

}  // namespace llava
