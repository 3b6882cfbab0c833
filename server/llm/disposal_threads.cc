#include "server/llm/disposal_threads.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "server/runtime/logging.h"

namespace llava {

DisposalThreads::~DisposalThreads() {
  std::list<Disposal> left;
  {
    MutexLock lock(mutex_);
    const auto runs = [](const Disposal& each) { return each.thread.joinable() && !each.done; };
    while (std::any_of(disposals_.begin(), disposals_.end(), runs)) changed_.Wait(mutex_);
    left.swap(disposals_);
  }
  for (Disposal& disposal : left) {
    if (disposal.thread.joinable()) {
      disposal.thread.join();
    } else {
      disposal.run();
    }
  }
}

void DisposalThreads::Post(std::function<void()> disposal) {
  MutexLock lock(mutex_);
  disposals_.push_back({std::move(disposal)});
  Start();
}

void DisposalThreads::Start() {
  std::erase_if(disposals_, [](Disposal& each) {
    if (each.done) each.thread.join();  // it has nothing left to do
    return each.done;
  });
  for (Disposal& each : disposals_) {
    if (each.thread.joinable()) continue;
    try {
      each.thread = start_([this, &each, run = each.run] {
        run();
        MutexLock own(mutex_);
        each.done = true;
        changed_.NotifyAll();
      });
      each.run = nullptr;
    } catch (const std::system_error& error) {
      // Not here: the caller may be a thread of what is to be taken away.
      return LogError("a version is taken away later: no thread can be started",
                      {{"error", error.what()}});
    }
  }
}

bool DisposalThreads::WaitUntilIdle(CondVar::Clock::time_point deadline) {
  MutexLock lock(mutex_);
  while (true) {
    Start();
    if (Idle()) return true;
    if (!changed_.WaitUntil(mutex_, deadline)) return Idle();
  }
}

bool DisposalThreads::Idle() const {
  return std::all_of(disposals_.begin(), disposals_.end(),
                     [](const Disposal& each) { return each.done; });
}

}  // namespace llava
