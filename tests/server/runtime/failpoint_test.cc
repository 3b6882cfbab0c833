#include "server/runtime/failpoint.h"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdlib>

namespace llava {
namespace {

// Rules are read once in a process: each test runs in one of its own.
template <typename Body>
void InAnotherProcess(const char* rules, Body body) {
  EXPECT_EXIT(
      {
        setenv("LLAVA_FAILPOINTS", rules, 1);
        body();
        std::_Exit(testing::Test::HasFailure() ? 1 : 0);
      },
      testing::ExitedWithCode(0), "");
}

TEST(FailpointDeathTest, FailsWhereItIsTold) {
  InAnotherProcess("store.commit=error@2;journal.write=error", [] {
    EXPECT_TRUE(HitFailpoint("store.commit").ok());
    EXPECT_EQ(HitFailpoint("store.commit").message(), "failpoint store.commit");
    EXPECT_TRUE(HitFailpoint("store.commit").ok());
    EXPECT_FALSE(HitFailpoint("journal.write").ok());
    EXPECT_FALSE(HitFailpoint("journal.write").ok());
    EXPECT_TRUE(HitFailpoint("elsewhere").ok());
  });
}

TEST(FailpointDeathTest, Waits) {
  InAnotherProcess("a=sleep:50@1", [] {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_TRUE(HitFailpoint("a").ok());
    EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
  });
}

TEST(FailpointDeathTest, Kills) {
  EXPECT_EXIT(
      {
        setenv("LLAVA_FAILPOINTS", "a=kill@2", 1);
        (void)HitFailpoint("a");
        (void)HitFailpoint("a");
      },
      testing::KilledBySignal(SIGKILL), "");
}

TEST(FailpointDeathTest, RefusesRulesThatMakeNoSense) {
  for (const char* rules :
       {"a", "a=", "a=explode", "a=error@0", "a=error@x", "a=sleep", "=error"}) {
    EXPECT_EXIT(
        {
          setenv("LLAVA_FAILPOINTS", rules, 1);
          (void)HitFailpoint("a");
        },
        testing::ExitedWithCode(2), "cannot read")
        << rules;
  }
}

TEST(Failpoint, IsNothingUnlessBuiltIn) {
#ifndef LLAVA_FAILPOINTS
  setenv("LLAVA_FAILPOINTS", "a=error", 1);
  EXPECT_TRUE(LLAVA_FAILPOINT("a").ok());
#else
  GTEST_SKIP() << "this build has failpoints";
#endif
}

}  // namespace
}  // namespace llava
