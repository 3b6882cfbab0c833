#include "server/llm/disposal_threads.h"

#include <algorithm>
#include <utility>

namespace llava {

DisposalThreads::~DisposalThreads() {
  std::list<Disposal> left;
  {
    MutexLock lock(mutex_);
    while (!Idle()) changed_.Wait(mutex_);
    left.swap(disposals_);
  }
  for (Disposal& disposal : left) disposal.thread.join();
}

void DisposalThreads::Post(std::function<void()> disposal) {
  MutexLock lock(mutex_);
  std::erase_if(disposals_, [](Disposal& each) {
    if (each.done) each.thread.join();  // it has nothing left to do
    return each.done;
  });
  Disposal& added = disposals_.emplace_back();
  added.thread = std::thread([this, &added, disposal = std::move(disposal)] {
    disposal();
    MutexLock own(mutex_);
    added.done = true;
    changed_.NotifyAll();
  });
}

bool DisposalThreads::WaitUntilIdle(CondVar::Clock::time_point deadline) {
  MutexLock lock(mutex_);
  while (!Idle()) {
    if (!changed_.WaitUntil(mutex_, deadline)) return Idle();
  }
  return true;
}

bool DisposalThreads::Idle() const {
  return std::all_of(disposals_.begin(), disposals_.end(),
                     [](const Disposal& each) { return each.done; });
}

}  // namespace llava
