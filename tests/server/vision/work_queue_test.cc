#include "server/vision/work_queue.h"

#include <gmock/gmock.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace llava {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

char Group(const std::string& item) { return item[0]; }
bool Never() { return false; }

void Push(WorkQueue<std::string>& queue, std::string item, int32_t priority = 0) {
  QueuePlace place;
  place.priority = priority;
  ASSERT_TRUE(queue.Push(place, item));
}

std::vector<std::string> Pop(WorkQueue<std::string>& queue, size_t max_items,
                             CondVar::Clock::duration max_wait = seconds(0),
                             std::vector<size_t> preferred = {}) {
  return queue.PopBatch({max_items, max_wait, std::move(preferred)}, Group, Never);
}

TEST(WorkQueueTest, ABatchHoldsItemsOfOneGroupOnly) {
  WorkQueue<std::string> queue;
  for (const char* item : {"a1", "b1", "a2", "b2", "a3"}) Push(queue, item);
  EXPECT_THAT(Pop(queue, 2), ElementsAre("a1", "a2"));
  EXPECT_THAT(Pop(queue, 9), ElementsAre("b1", "b2"));
  EXPECT_THAT(Pop(queue, 9), ElementsAre("a3"));
}

TEST(WorkQueueTest, HigherPriorityOpensTheBatch) {
  WorkQueue<std::string> queue;
  Push(queue, "a1");
  Push(queue, "b1", 1);
  EXPECT_THAT(Pop(queue, 9), ElementsAre("b1"));
}

TEST(WorkQueueTest, WaitsForABatchToFillButNotForever) {
  WorkQueue<std::string> queue;
  Push(queue, "a1");
  std::thread second([&] { Push(queue, "a2"); });
  EXPECT_THAT(Pop(queue, 2, seconds(20)), ElementsAre("a1", "a2"));
  second.join();
  Push(queue, "a3");
  EXPECT_THAT(Pop(queue, 2, std::chrono::milliseconds(1)), ElementsAre("a3"));
}

TEST(WorkQueueTest, OthersDoNotFillABatch) {
  WorkQueue<std::string> queue;
  for (const char* item : {"a1", "b1", "b2"}) Push(queue, item);
  std::thread second([&] { Push(queue, "a2"); });
  EXPECT_THAT(Pop(queue, 2, seconds(20)), ElementsAre("a1", "a2"));
  second.join();
}

TEST(WorkQueueTest, WhatHasWaitedLongWaitsNoMore) {
  WorkQueue<std::string> queue;
  const auto wait = std::chrono::milliseconds(200);
  Push(queue, "a1");
  std::this_thread::sleep_for(wait);
  int asked = 0;  // before each wait
  const auto leave = [&] { return ++asked > 1; };
  EXPECT_THAT(queue.PopBatch({2, wait, {}}, Group, leave), ElementsAre("a1"))
      << "the time counts from the arrival";
}

TEST(WorkQueueTest, TheLargestPreferredSizeLeavesAtOnce) {
  WorkQueue<std::string> queue;
  for (const char* item : {"a1", "a2", "a3", "a4", "a5", "a6", "a7"}) Push(queue, item);
  EXPECT_THAT(Pop(queue, 8, seconds(20), {2, 4}), ElementsAre("a1", "a2", "a3", "a4"));
  EXPECT_THAT(Pop(queue, 8, seconds(20), {2, 4}), ElementsAre("a5", "a6"));
  EXPECT_THAT(Pop(queue, 8, std::chrono::milliseconds(1), {2, 4}), ElementsAre("a7"))
      << "a smaller one when its time is over";
}

TEST(WorkQueueTest, AConsumerMayLeave) {
  WorkQueue<std::string> queue;
  std::atomic<bool> leave = false;
  std::thread consumer([&] {
    EXPECT_THAT(queue.PopBatch({1, seconds(0), {}}, Group, [&] { return leave.load(); }),
                IsEmpty());
  });
  leave = true;
  queue.Wake();
  consumer.join();
  Push(queue, "a1");
  EXPECT_THAT(queue.PopBatch({1, seconds(0), {}}, Group, [&] { return leave.load(); }), IsEmpty())
      << "even if there is work";
  EXPECT_THAT(Pop(queue, 1), ElementsAre("a1"));
}

TEST(WorkQueueTest, AfterCloseOnlyWhatIsInsideComesOut) {
  WorkQueue<std::string> queue;
  Push(queue, "a1");
  queue.Close();
  std::string late = "a2";
  EXPECT_FALSE(queue.Push({}, late));
  EXPECT_EQ(late, "a2");
  EXPECT_THAT(Pop(queue, 2, seconds(20)), ElementsAre("a1"));
  EXPECT_THAT(Pop(queue, 2, seconds(20)), IsEmpty());
}

}  // namespace
}  // namespace llava
