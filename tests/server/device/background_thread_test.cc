// Threads that stand back.

#include "server/device/background_thread.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>

#include "model/ops/cpu/thread_pool.h"
#include "server/runtime/mutex.h"

namespace llava {
namespace {

// Linux counts niceness by thread.
int OwnNiceness() { return getpriority(PRIO_PROCESS, 0); }

TEST(RunInBackgroundTest, ThreadsOfAPoolThatIsMadeThereStandBackFromThenOn) {
  const int here = OwnNiceness();
  std::unique_ptr<ops::cpu::ThreadPool> pool;
  int there = here;
  RunInBackground([&] {
    there = OwnNiceness();
    pool = std::make_unique<ops::cpu::ThreadPool>(2);
  });
  EXPECT_EQ(there, 19);
  EXPECT_EQ(OwnNiceness(), here);
  // Two tasks that wait for each other are two threads': the caller's and the pool's.
  Mutex mutex;
  CondVar both;
  int begun = 0, least = 20, most = -21;
  pool->Run(2, [&](int64_t, int) {
    MutexLock lock(mutex);
    least = std::min(least, OwnNiceness());
    most = std::max(most, OwnNiceness());
    ++begun;
    both.NotifyAll();
    while (begun < 2) both.Wait(mutex);
  });
  EXPECT_EQ(least, here);
  EXPECT_EQ(most, 19);
}

TEST(RunInBackgroundTest, WhatIsThrownThereIsThrownHere) {
  EXPECT_THROW(RunInBackground([] { throw std::invalid_argument("no"); }), std::invalid_argument);
}

}  // namespace
}  // namespace llava
