#include "server/vision/work_queue.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <string>
#include <thread>

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

char Group(const std::string& item) { return item[0]; }

void Push(WorkQueue<std::string>& queue, std::string item, int32_t priority = 0) {
  QueuePlace place;
  place.priority = priority;
  ASSERT_TRUE(queue.Push(place, item));
}

TEST(WorkQueueTest, ABatchHoldsItemsOfOneGroupOnly) {
  WorkQueue<std::string> queue;
  for (const char* item : {"a1", "b1", "a2", "b2", "a3"}) Push(queue, item);
  const auto no_wait = std::chrono::seconds(0);
  EXPECT_THAT(queue.PopBatch(2, no_wait, Group), ElementsAre("a1", "a2"));
  EXPECT_THAT(queue.PopBatch(9, no_wait, Group), ElementsAre("b1", "b2"));
  EXPECT_THAT(queue.PopBatch(9, no_wait, Group), ElementsAre("a3"));
}

TEST(WorkQueueTest, HigherPriorityOpensTheBatch) {
  WorkQueue<std::string> queue;
  Push(queue, "a1");
  Push(queue, "b1", 1);
  EXPECT_THAT(queue.PopBatch(9, std::chrono::seconds(0), Group), ElementsAre("b1"));
}

TEST(WorkQueueTest, WaitsForABatchToFillButNotForever) {
  WorkQueue<std::string> queue;
  Push(queue, "a1");
  std::thread second([&] { Push(queue, "a2"); });
  EXPECT_THAT(queue.PopBatch(2, std::chrono::seconds(20), Group), ElementsAre("a1", "a2"));
  second.join();
  Push(queue, "a3");
  EXPECT_THAT(queue.PopBatch(2, std::chrono::milliseconds(1), Group), ElementsAre("a3"));
}

TEST(WorkQueueTest, AfterCloseOnlyWhatIsInsideComesOut) {
  WorkQueue<std::string> queue;
  Push(queue, "a1");
  queue.Close();
  std::string late = "a2";
  EXPECT_FALSE(queue.Push({}, late));
  EXPECT_EQ(late, "a2");
  EXPECT_THAT(queue.PopBatch(2, std::chrono::seconds(20), Group), ElementsAre("a1"));
  EXPECT_THAT(queue.PopBatch(2, std::chrono::seconds(20), Group), IsEmpty());
}

}  // namespace
}  // namespace llava
