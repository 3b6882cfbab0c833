#include "server/lifecycle/swap_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Verdict = SwapPlan::Verdict;

WorkerBytes Bytes(uint64_t each, int workers) {
  WorkerBytes bytes;
  for (int n = 1; n <= workers; ++n) bytes.push_back(each * static_cast<uint64_t>(n));
  return bytes;
}

// A version of 100 bytes a worker in place of version 4 of the same size.
SwapRequest Request(uint64_t budget, int workers = 1) {
  SwapRequest request;
  request.candidate = Bytes(100, workers);
  request.old = {{4, Bytes(100, workers), workers, true}};
  request.budget = budget;
  return request;
}

SwapPlan Plan(SwapRequest request, const std::function<void(SwapRequest&)>& change = {}) {
  if (change) change(request);
  return PlanSwap(request);
}

TEST(PlanSwap, SideBySideIfAllFits) {
  for (const uint64_t budget : {0, 200, 1000}) {
    const SwapPlan plan = Plan(Request(budget));
    EXPECT_EQ(plan.verdict, Verdict::kGo);
    EXPECT_EQ(plan.mode, SwapMode::kSideBySide);
    EXPECT_THAT(plan.victims, IsEmpty());
  }
}

TEST(PlanSwap, InPlaceIfNot) {
  const SwapPlan plan = Plan(Request(199));
  EXPECT_EQ(plan.verdict, Verdict::kGo);
  EXPECT_EQ(plan.mode, SwapMode::kInPlace);
  EXPECT_THAT(plan.victims, ElementsAre(4));
  EXPECT_THAT(plan.why, HasSubstr("199 bytes"));
}

TEST(PlanSwap, RollingIfEveryStepFits) {
  const SwapPlan plan = Plan(Request(399, 2));
  EXPECT_EQ(plan.mode, SwapMode::kRolling);
  EXPECT_THAT(plan.victims, ElementsAre(4));
  // The last step: the new version alone.
  EXPECT_EQ(Plan(Request(200, 2)).mode, SwapMode::kRolling);
  EXPECT_EQ(Plan(Request(199, 2)).verdict, Verdict::kRefuse);
  // A larger version does not fit in the end: then nothing begins.
  const auto larger = [](SwapRequest& request) { request.candidate = Bytes(150, 2); };
  EXPECT_EQ(Plan(Request(300, 2), larger).mode, SwapMode::kRolling);
  EXPECT_EQ(Plan(Request(299, 2), larger).verdict, Verdict::kRefuse);
}

TEST(PlanSwap, RollingNeedsTheOldVersionOnAllWorkers) {
  const SwapPlan plan = Plan(Request(300, 2), [](SwapRequest& r) { r.old[0].workers = 1; });
  EXPECT_EQ(plan.mode, SwapMode::kSideBySide) << "it takes less then";
  const SwapPlan tight = Plan(Request(299, 2), [](SwapRequest& r) { r.old[0].workers = 1; });
  EXPECT_EQ(tight.mode, SwapMode::kInPlace);
}

TEST(PlanSwap, WaitsWhileSomethingIsInMotion) {
  const auto motion = [](SwapRequest& request) { request.in_motion = true; };
  EXPECT_EQ(Plan(Request(199), motion).verdict, Verdict::kWait);
  EXPECT_EQ(Plan(Request(200), motion).verdict, Verdict::kGo) << "it fits as it is";
}

TEST(PlanSwap, TakesAsFewAsItNeeds) {
  const auto two = [](SwapRequest& request) {
    request.old.push_back({7, Bytes(50, 1), 1, true});
    request.staying_bytes = 1000;
  };
  EXPECT_THAT(Plan(Request(1150), two).victims, ElementsAre(4));
  EXPECT_THAT(Plan(Request(1149), two).victims, ElementsAre(4, 7));
  const SwapPlan none = Plan(Request(1099), two);
  EXPECT_EQ(none.verdict, Verdict::kRefuse);
  EXPECT_THAT(none.why, HasSubstr("even without version 4, 7"));
}

TEST(PlanSwap, NobodyMakesWayWhoCouldNotComeBack) {
  const auto gone = [](SwapRequest& request) { request.old[0].restorable = false; };
  const SwapPlan plan = Plan(Request(199), gone);
  EXPECT_EQ(plan.verdict, Verdict::kRefuse);
  EXPECT_THAT(plan.why, HasSubstr("folder is gone"));
  EXPECT_EQ(Plan(Request(200), gone).verdict, Verdict::kGo);
}

TEST(PlanSwap, AloneItFitsOrNot) {
  const auto alone = [](SwapRequest& request) {
    request.old.clear();
    request.staying_bytes = 50;
  };
  EXPECT_EQ(Plan(Request(150), alone).verdict, Verdict::kGo);
  const SwapPlan plan = Plan(Request(149), alone);
  EXPECT_EQ(plan.verdict, Verdict::kRefuse);
  EXPECT_THAT(plan.why, HasSubstr("100 bytes"));
}

TEST(PlanSwap, AGuessRefusesNothing) {
  const auto alone = [](SwapRequest& request) {
    request.old.clear();
    request.soft_budget = true;
  };
  EXPECT_EQ(Plan(Request(10), alone).verdict, Verdict::kGo);
  const SwapPlan plan = Plan(Request(10), [](SwapRequest& r) { r.soft_budget = true; });
  EXPECT_EQ(plan.verdict, Verdict::kGo);
  EXPECT_EQ(plan.mode, SwapMode::kInPlace);
}

TEST(PlanSwap, ForcedModes) {
  const auto force = [](SwapMode mode) {
    return [mode](SwapRequest& request) { request.forced = mode; };
  };
  EXPECT_EQ(Plan(Request(0), force(SwapMode::kInPlace)).mode, SwapMode::kInPlace);
  EXPECT_EQ(Plan(Request(0, 2), force(SwapMode::kRolling)).mode, SwapMode::kRolling);
  EXPECT_EQ(Plan(Request(0, 1), force(SwapMode::kRolling)).mode, SwapMode::kInPlace);
  const SwapPlan beside = Plan(Request(199), force(SwapMode::kSideBySide));
  EXPECT_EQ(beside.verdict, Verdict::kRefuse);
  EXPECT_THAT(beside.why, HasSubstr("side_by_side"));
  // Where there is nothing to replace, every mode is a load.
  const SwapPlan first = Plan(Request(0), [](SwapRequest& request) {
    request.forced = SwapMode::kInPlace;
    request.old.clear();
  });
  EXPECT_EQ(first.mode, SwapMode::kSideBySide);
}

TEST(SwapMode, Names) {
  for (const SwapMode mode : {SwapMode::kSideBySide, SwapMode::kRolling, SwapMode::kInPlace}) {
    EXPECT_EQ(ParseSwapMode(ToString(mode)), mode);
  }
  EXPECT_EQ(ParseSwapMode("auto"), std::nullopt);
}

}  // namespace
}  // namespace llava
