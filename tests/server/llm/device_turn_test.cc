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

// A piece of work that takes `time`, or longer on a machine that is busy; how long.
Clock::duration Work(Clock::duration time) {
  const auto begin = Clock::now();
  std::this_thread::sleep_for(time);
  return Clock::now() - begin;
}

TEST(DeviceTurnTest, BackgroundIsNotHeldUpWhereNoAnswersAreMade) {
  DeviceTurn turn;
  Clock::duration waited{}, worked{};
  for (int i = 0; i < 20; ++i) {
    const auto asked = Clock::now();
    const DeviceTurn::Held held = turn.InBackground();
    waited += Clock::now() - asked;
    worked += Work(milliseconds(2));
  }
  EXPECT_LT(waited, worked) << "beside answers it would be four times as long";
}

TEST(DeviceTurnTest, AnswersKeepMostOfTheDeviceAndBackgroundComesOn) {
  DeviceTurn turn;
  std::atomic<bool> end = false;
  std::atomic<int64_t> answers_time = 0;  // of the clock
  std::thread answers([&] {
    turn.Busy(true);
    while (!end) {
      const DeviceTurn::Held held = turn.ForAnswers();
      answers_time += Work(milliseconds(2)).count();
    }
    turn.Busy(false);
  });
  while (answers_time == 0) std::this_thread::yield();
  const int64_t before = answers_time;
  int64_t background_time = 0;
  for (int i = 0; i < 20; ++i) {
    const DeviceTurn::Held held = turn.InBackground();
    background_time += Work(milliseconds(2)).count();
  }
  const int64_t during = answers_time - before;
  end = true;
  answers.join();
  EXPECT_GT(during, 2 * background_time);
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
