#include "server/runtime/task_threads.h"

#include <gtest/gtest.h>

#include <atomic>

#include "tests/support/few_threads.h"

namespace llava {
namespace {

TEST(TaskThreadsTest, RunsWhatWasPostedBeforeItEnds) {
  std::atomic<int> done = 0;
  {
    TaskThreads threads(2, 100);
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(threads.Post([&] { ++done; }));
  }
  EXPECT_EQ(done, 100);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which need memory of theirs
TEST(TaskThreadsDeathTest, ThreadsThatCannotBeStartedAreAnError) {
  EXPECT_EXIT(ExitWithFewThreads([] { TaskThreads(1000, 10); }, "of 1000"),
              testing::ExitedWithCode(0), "");
}
#endif

}  // namespace
}  // namespace llava
