#include "server/runtime/fair_queue.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace llava {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Drain(FairQueue<std::string>& queue) {
  std::vector<std::string> order;
  while (auto item = queue.PopFront()) order.push_back(*item);
  return order;
}

TEST(FairQueueTest, ServesOneTenantInOrderOfArrival) {
  FairQueue<std::string> queue;
  for (const char* item : {"a", "b", "c"}) queue.Push({}, item);
  EXPECT_EQ(*queue.Front(), "a");
  EXPECT_THAT(Drain(queue), ElementsAre("a", "b", "c"));
}

TEST(FairQueueTest, PriorityGoesBeforeEverything) {
  FairQueue<std::string> queue;
  queue.Push({.priority = -1}, "background");
  queue.Push({.priority = 0}, "normal");
  queue.Push({.weight = 1, .priority = 5, .cost = 1e9}, "urgent");
  EXPECT_THAT(Drain(queue), ElementsAre("urgent", "normal", "background"));
}

TEST(FairQueueTest, ALatecomerDoesNotWaitForAnotherTenantsHeap) {
  FairQueue<std::string> queue;
  for (int i = 0; i < 4; ++i) queue.Push({.tenant = "heap"}, "h" + std::to_string(i));
  queue.Push({.tenant = "late"}, "l0");
  EXPECT_THAT(Drain(queue), ElementsAre("h0", "l0", "h1", "h2", "h3"));
}

TEST(FairQueueTest, TenantsShareByWeight) {
  FairQueue<std::string> queue;
  for (int i = 0; i < 6; ++i) {
    queue.Push({.tenant = "two", .weight = 2}, "2");
    queue.Push({.tenant = "one", .weight = 1}, "1");
  }
  int two = 0, one = 0;
  for (int i = 0; i < 6; ++i) ++(*queue.PopFront() == "2" ? two : one);
  EXPECT_EQ(two, 4);
  EXPECT_EQ(one, 2);
}

TEST(FairQueueTest, CostlyItemsCountForMore) {
  FairQueue<std::string> queue;
  queue.Push({.tenant = "long", .cost = 10}, "L1");
  queue.Push({.tenant = "long", .cost = 10}, "L2");
  for (int i = 0; i < 3; ++i) queue.Push({.tenant = "short", .cost = 1}, "s");
  EXPECT_THAT(Drain(queue), ElementsAre("L1", "s", "s", "s", "L2"));
}

TEST(FairQueueTest, TakesTheFirstThatIsWantedAndLeavesTheRest) {
  FairQueue<std::string> queue;
  for (const char* item : {"a1", "b1", "a2"}) queue.Push({}, item);
  EXPECT_EQ(*queue.PopFirst([](const std::string& item) { return item[0] == 'b'; }), "b1");
  EXPECT_FALSE(queue.PopFirst([](const std::string& item) { return item[0] == 'c'; }));
  EXPECT_THAT(queue.RemoveIf([](const std::string& item) { return item == "a1"; }),
              ElementsAre("a1"));
  EXPECT_THAT(Drain(queue), ElementsAre("a2"));
  EXPECT_TRUE(queue.empty());
}

TEST(FairQueueTest, WhatIsRemovedCountsForNothing) {
  FairQueue<std::string> queue;
  for (const char* item : {"a1", "a2", "a3"}) queue.Push({.tenant = "a", .cost = 10}, item);
  for (const char* item : {"b1", "b2"}) queue.Push({.tenant = "b", .cost = 10}, item);
  queue.RemoveIf([](const std::string& item) { return item[0] == 'a'; });
  queue.Push({.tenant = "a", .cost = 10}, "a4");
  EXPECT_THAT(Drain(queue), ElementsAre("b1", "a4", "b2"));
}

TEST(FairQueueTest, WhatWaitsBehindTheRemovedMovesUpInItsOrder) {
  FairQueue<std::string> queue;
  for (const char* item : {"a1", "a2", "a3", "a4"}) queue.Push({.tenant = "a", .cost = 10}, item);
  for (const char* item : {"b1", "b2", "b3"}) queue.Push({.tenant = "b", .cost = 10}, item);
  queue.RemoveIf([](const std::string& item) { return item == "a1" || item == "a2"; });
  queue.Push({.tenant = "a", .cost = 10}, "a5");
  EXPECT_THAT(Drain(queue), ElementsAre("a3", "b1", "a4", "b2", "b3", "a5"));
}

TEST(FairQueueTest, WhatWasTakenCountsAlsoWhenTheRestIsRemoved) {
  FairQueue<std::string> queue;
  for (const char* item : {"a1", "a2", "a3"}) queue.Push({.tenant = "a", .cost = 10}, item);
  for (int i = 1; i < 5; ++i) queue.Push({.tenant = "b", .cost = 5}, "b" + std::to_string(i));
  // Out of turn, too: the second one, of the tenant's first two.
  EXPECT_EQ(*queue.PopFirst([](const std::string& item) { return item == "a2"; }), "a2");
  queue.RemoveIf([](const std::string& item) { return item == "a1"; });
  queue.Push({.tenant = "a", .cost = 10}, "a4");
  EXPECT_THAT(Drain(queue), ElementsAre("b1", "b2", "a3", "b3", "b4", "a4"));
}

TEST(FairQueueTest, RemovingMovesNothingBack) {
  FairQueue<std::string> queue;
  queue.Push({.tenant = "a", .cost = 10}, "a1");
  queue.Push({.tenant = "a", .priority = 1, .cost = 10}, "urgent");
  queue.Push({.tenant = "a", .cost = 10}, "a2");
  queue.Push({.tenant = "b", .cost = 10}, "b1");
  EXPECT_EQ(*queue.PopFront(), "urgent");
  queue.RemoveIf([](const std::string& item) { return item == "a2"; });
  EXPECT_THAT(Drain(queue), ElementsAre("a1", "b1"));
}

TEST(FairQueueTest, DoesNotRememberAllTenantsThatEverWere) {
  using Queue = FairQueue<std::string>;
  Queue queue;
  queue.Push({.tenant = "first"}, "x");  // so that it is never empty
  for (size_t i = 0; i < 3 * Queue::kMaxIdleTenants; ++i) {
    queue.Push({.tenant = std::to_string(i)}, "x");
    queue.PopFront();
  }
  EXPECT_EQ(queue.size(), 1u);
  EXPECT_LE(queue.tenants(), Queue::kMaxIdleTenants + 1);
}

}  // namespace
}  // namespace llava
