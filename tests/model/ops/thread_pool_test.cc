#include "model/ops/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/few_threads.h"

namespace llava::ops::cpu {
namespace {

TEST(ThreadPoolTest, EveryTaskRunsOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<int> runs(tasks);  // no atomics: tasks are on their own, and Run waits for all
      pool.Run(tasks, [&](int64_t index, int worker) {
        ++runs[index];
        EXPECT_TRUE(worker >= 0 && worker < threads);
      });
      for (const int count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPoolTest, AWorkerDoesOneTaskAtATime) {
  ThreadPool pool(4);
  std::vector<int64_t> sums(4);
  pool.Run(10000, [&](int64_t index, int worker) { sums[worker] += index; });
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), 10000 * 9999 / 2);
}

TEST(ThreadPoolTest, ThousandsOfTinyRuns) {
  ThreadPool pool(3);
  int64_t total = 0;
  std::vector<int64_t> parts(3);
  for (int run = 0; run < 20000; ++run) {
    pool.Run(3, [&](int64_t index, int) { parts[index] = run + index; });
    total += parts[0] + parts[1] + parts[2];
  }
  EXPECT_EQ(total, int64_t{3} * 20000 * 19999 / 2 + 3 * 20000);
}

TEST(ThreadPoolTest, WorkersThatSleepWakeUp) {
  ThreadPool pool(2);
  for (int run = 0; run < 5; ++run) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than anybody spins
    // Two tasks that wait for each other need two threads.
    std::atomic<int> there{0};
    pool.Run(2, [&](int64_t, int) {
      ++there;
      while (there < 2) std::this_thread::yield();
    });
  }
}

TEST(ThreadPoolTest, AnExceptionReachesTheCaller) {
  ThreadPool pool(3);
  for (int run = 0; run < 100; ++run) {
    try {
      pool.Run(50, [&](int64_t index, int) {
        if (index == 17) throw std::runtime_error("task 17");
      });
      FAIL() << "no exception";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "task 17");
    }
    int64_t done = 0;
    pool.Run(1, [&](int64_t, int) { ++done; });
    EXPECT_EQ(done, 1) << "the pool lives on";
  }
}

TEST(ThreadPoolTest, ATaskMayNotRunTasks) {
  ThreadPool pool(2), other(2);
  for (ThreadPool* inner : {&pool, &other}) {
    EXPECT_THROW(pool.Run(4, [&](int64_t, int) { inner->Run(1, [](int64_t, int) {}); }),
                 std::logic_error);
  }
  pool.Run(4, [](int64_t, int) {});
}

TEST(ThreadPoolTest, CallersTakeTurns) {
  ThreadPool pool(2);
  std::vector<int64_t> sums(3);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&, caller] {
      for (int run = 0; run < 500; ++run) {
        std::atomic<int64_t> sum{0};
        pool.Run(10, [&](int64_t index, int) { sum += index; });
        sums[caller] += sum;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const int64_t sum : sums) EXPECT_EQ(sum, 500 * 45);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which need memory of theirs
TEST(ThreadPoolDeathTest, ThreadsThatCannotBeStartedAreAnError) {
  EXPECT_EXIT(ExitWithFewThreads([] { ThreadPool(1000); }, "of 1000 cannot be started"),
              testing::ExitedWithCode(0), "");
}
#endif

TEST(ThreadPoolTest, NoThreadsAreRefused) { EXPECT_THROW(ThreadPool(0), std::invalid_argument); }

}  // namespace
}  // namespace llava::ops::cpu
