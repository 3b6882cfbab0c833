#include "server/llm/device_turn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/slowdown.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using Clock = DeviceTurn::Clock;

TEST(DeviceTurnTest, OneComputesAtATimeAndThoseWithAnswersAlternate) {
  DeviceTurn turn;
  std::string order;  // guarded by the turn: a race is what sanitizers would find
  std::atomic<int> waiting = 0;
  const auto work = [&](char name) {
    turn.Busy(true);
    ++waiting;
    while (waiting < 2) std::this_thread::yield();
    for (int i = 0; i < 20; ++i) {
      const DeviceTurn::Held held = turn.ForAnswers();
      order += name;
      std::this_thread::sleep_for(milliseconds(2));  // the other one asks meanwhile
    }
    turn.Busy(false);
  };
  std::thread a(work, 'a'), b(work, 'b');
  a.join();
  b.join();
  ASSERT_EQ(order.size(), 40u);
  int changes = 0;
  for (size_t i = 1; i < order.size(); ++i) changes += order[i] != order[i - 1] ? 1 : 0;
  EXPECT_GE(changes, 36) << order;
}

TEST(DeviceTurnTest, BackgroundIsNotHeldUpWhereNoAnswersAreMade) {
  DeviceTurn turn;
  const auto begin = Clock::now();
  for (int i = 0; i < 20; ++i) {
    const DeviceTurn::Held held = turn.InBackground();
    std::this_thread::sleep_for(milliseconds(2));
  }
  EXPECT_LT(Clock::now() - begin, kSlowdown * milliseconds(160)) << "four times as long, and more";
}

TEST(DeviceTurnTest, AnswersKeepMostOfTheDeviceAndBackgroundComesOn) {
  DeviceTurn turn;
  std::atomic<bool> end = false;
  std::atomic<int> steps = 0;
  Clock::duration longest{};
  std::thread answers([&] {
    turn.Busy(true);
    auto last = Clock::now();
    while (!end) {
      const DeviceTurn::Held held = turn.ForAnswers();
      std::this_thread::sleep_for(milliseconds(2));
      longest = std::max(longest, Clock::now() - last);
      last = Clock::now();
      ++steps;
    }
    turn.Busy(false);
  });
  while (steps == 0) std::this_thread::yield();
  const int before = steps;
  constexpr int kPieces = 20;
  for (int i = 0; i < kPieces; ++i) {
    const DeviceTurn::Held held = turn.InBackground();
    std::this_thread::sleep_for(milliseconds(2));
  }
  const int during = steps - before;
  end = true;
  answers.join();
  // Pieces take as long as steps: at least three steps for each but the first.
  EXPECT_GE(during, 3 * (kPieces - 1) / kSlowdown);
  EXPECT_LT(longest, kSlowdown * milliseconds(200));
}

}  // namespace
}  // namespace llava
