#include "server/llm/device_turn.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

namespace llava {
namespace {

using std::chrono::milliseconds;
using Clock = DeviceTurn::Clock;

TEST(DeviceTurnTest, OneComputesAtATimeAndThoseWithAnswersAlternate) {
  DeviceTurn turn;
  std::string order;  // guarded by the turn: a race is what sanitizers would find
  std::atomic<int> at_work = 2;
  const auto work = [&](char name) {
    turn.Busy(true);
    for (int i = 0; i < 20; ++i) {
      const DeviceTurn::Held held = turn.ForAnswers();
      order += name;
      while (turn.waiting() == 0 && at_work == 2) std::this_thread::yield();  // the other one asks
    }
    --at_work;
    turn.Busy(false);
  };
  std::thread a(work, 'a'), b(work, 'b');
  a.join();
  b.join();
  ASSERT_EQ(order.size(), 40u);
  int changes = 0;
  for (size_t i = 1; i < order.size(); ++i) changes += order[i] != order[i - 1] ? 1 : 0;
  EXPECT_EQ(changes, 39) << order;
}

// A piece of work that takes `time`, or longer on a machine that is busy; how long.
Clock::duration Work(Clock::duration time) {
  const auto begin = Clock::now();
  std::this_thread::sleep_for(time);
  return Clock::now() - begin;
}

TEST(DeviceTurnTest, BackgroundIsNotHeldUpWhereNoAnswersAreMade) {
  DeviceTurn turn;
  int at_once = 0;
  Clock::duration before{};
  for (int i = 0; i < 20; ++i) {
    const auto asked = Clock::now();
    const DeviceTurn::Held held = turn.InBackground();
    at_once += i > 0 && Clock::now() - asked < before ? 1 : 0;
    before = Work(milliseconds(2));
  }
  EXPECT_GT(at_once, 0) << "beside answers each would wait four times as long as the one before";
}

TEST(DeviceTurnTest, AnswersKeepMostOfTheDeviceAndBackgroundComesOn) {
  DeviceTurn turn;
  std::atomic<bool> begun = false, end = false;
  std::thread answers([&] {
    turn.Busy(true);
    while (!end) {
      const DeviceTurn::Held held = turn.ForAnswers();
      begun = true;
      Work(milliseconds(2));
    }
    turn.Busy(false);
  });
  while (!begun) std::this_thread::yield();
  Clock::time_point left;
  Clock::duration worked{};
  for (int i = 0; i < 20; ++i) {
    const DeviceTurn::Held held = turn.InBackground();
    const auto came = Clock::now();
    if (i > 0) {
      EXPECT_GE(came - left, 4 * worked) << "the answers' time after piece " << i;
    }
    worked = Work(milliseconds(2));
    left = Clock::now();
  }
  end = true;
  answers.join();
}

TEST(DeviceTurnTest, ATurnThatIsTakenBackIsTheNextOnes) {
  DeviceTurn turn;
  auto hung = std::make_unique<DeviceTurn::Held>(turn.ForAnswers());
  turn.TakeBack();
  auto next = std::make_unique<DeviceTurn::Held>(turn.ForAnswers());
  hung.reset();  // too late: the turn is another's
  std::atomic<bool> third = false;
  std::thread waiter([&] {
    const DeviceTurn::Held held = turn.ForAnswers();
    third = true;
  });
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_FALSE(third);
  next.reset();
  waiter.join();
  EXPECT_TRUE(third);
}

}  // namespace
}  // namespace llava
