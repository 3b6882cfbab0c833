#include "server/llm/scheduler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace llava {
namespace {

using ::testing::ElementsAre;

using Rows = std::vector<int64_t>;
using Preempted = std::vector<bool>;

SequenceView Decodes(int64_t room = 16, int32_t priority = 0) {
  return {.left = 1, .decodes = true, .room = room, .priority = priority};
}
SequenceView Prompt(int64_t left, int32_t priority = 0) {
  return {.left = left, .decodes = false, .room = left, .priority = priority};
}

StepPlan Plan(const std::vector<SequenceView>& running, int64_t rows, int64_t blocks = 1000,
              const Rows& regained = {}) {
  return PlanStep(running, {.prompt_rows = rows, .available_blocks = blocks},
                  [&](size_t i) { return regained.at(i); });
}

TEST(SchedulerTest, JoinsWhileNobodyHasToGiveWay) {
  struct Case {
    int64_t blocks, running, available;
    bool expected;
  };
  for (const Case& c : std::vector<Case>{{10, 1, 11, true},
                                         {10, 1, 10, false},
                                         {10, 2, 11, false},
                                         {10, 0, 5, true},  // what is cached gives way
                                         {1, 3, 100, false}}) {
    EXPECT_EQ(CanJoin(c.blocks, c.running, {.max_running = 3, .available_blocks = c.available}),
              c.expected)
        << c.blocks << " beside " << c.running;
  }
}

TEST(SchedulerTest, MixesOneRowOfEachAnswerWithPrompts) {
  struct Case {
    std::vector<SequenceView> running;
    int64_t rows;
    Rows expected;
  };
  for (const Case& c : std::vector<Case>{
           {{}, 8, {}},
           {{Decodes(), Decodes()}, 8, {1, 1}},
           {{Prompt(20)}, 8, {8}},
           {{Prompt(5)}, 8, {5}},
           {{Decodes(), Prompt(20), Decodes()}, 8, {1, 8, 1}},
           // Half to the first, the rest to the shortest.
           {{Prompt(20), Prompt(30), Prompt(3)}, 8, {5, 0, 3}},
           {{Prompt(20), Prompt(30), Prompt(9)}, 8, {4, 0, 4}},
           {{Prompt(2), Prompt(30), Prompt(3)}, 8, {2, 3, 3}},
           // Priority before both.
           {{Prompt(5), Prompt(20, 1), Decodes(16, 9)}, 8, {0, 8, 1}},
           {{Prompt(5), Prompt(6, 1)}, 8, {2, 6}},
           {{Prompt(1), Prompt(1), Prompt(1)}, 2, {1, 1, 0}},
       }) {
    const StepPlan plan = Plan(c.running, c.rows);
    EXPECT_EQ(plan.rows, c.expected);
    EXPECT_EQ(plan.preempted, Preempted(c.running.size(), false));
  }
}

TEST(SchedulerTest, TheLastGivesWayWhereBlocksAreShort) {
  struct Case {
    std::vector<SequenceView> running;
    int64_t available;
    Rows regained, rows;
    Preempted preempted;
  };
  for (const Case& c : std::vector<Case>{
           // Both need a block, there is one: the later one gives way.
           {{Decodes(0), Decodes(0)}, 1, {3, 3}, {1, 0}, {false, true}},
           // One is short, the last one's blocks are enough for it.
           {{Decodes(0), Decodes(5)}, 0, {3, 3}, {1, 0}, {false, true}},
           // Nothing comes back from the last one (it shares all), so the one before goes too.
           {{Decodes(0), Decodes(5), Decodes(5)}, 0, {3, 1, 0}, {1, 0, 0}, {false, true, true}},
           // Priority decides before arrival.
           {{Decodes(0), Decodes(0, 1)}, 1, {3, 3}, {0, 1}, {true, false}},
           // A prompt has its blocks, and gives way with them.
           {{Decodes(3), Prompt(50)}, 0, {3, 3}, {1, 50}, {false, false}},
           {{Decodes(0), Prompt(50)}, 0, {3, 3}, {1, 0}, {false, true}},
           {{Decodes(0), Prompt(50, 1)}, 0, {3, 3}, {0, 50}, {true, false}},
           // Alone and short of room: nobody to take from.
           {{Decodes(0)}, 0, {2}, {0}, {true}},
       }) {
    const StepPlan plan = Plan(c.running, 64, c.available, c.regained);
    EXPECT_EQ(plan.rows, c.rows);
    EXPECT_EQ(plan.preempted, c.preempted);
  }
}

// Random sequences with few blocks: the plan never hands out more than there is, the first never
// gives way, and all come to their ends.
TEST(SchedulerTest, EverySequenceEndsSomeTime) {
  constexpr int64_t kBlock = 16, kTotal = 12;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    struct State {
      int64_t prompt, answer, computed = 0, blocks = 0;
      bool paused = true;  // joins as it begins again
    };
    std::vector<State> states;
    for (int i = 0; i < 6; ++i) {
      states.push_back(
          {1 + static_cast<int64_t>(random() % 100), 1 + static_cast<int64_t>(random() % 60)});
    }
    const auto used = [&] {
      return std::accumulate(states.begin(), states.end(), int64_t{0},
                             [](int64_t sum, const State& s) { return sum + s.blocks; });
    };
    int steps = 0;
    for (; !states.empty() && steps < 2000; ++steps) {
      int64_t active = 0;
      for (const State& s : states) active += s.paused ? 0 : 1;
      std::vector<SequenceView> views;
      std::vector<size_t> index;
      for (size_t i = 0; i < states.size(); ++i) {
        State& s = states[i];
        const int64_t rows = std::max(s.prompt, s.computed);
        const int64_t blocks = (rows + kBlock - 1) / kBlock;
        if (s.paused &&
            CanJoin(blocks, active, {.max_running = 10, .available_blocks = kTotal - used()})) {
          s.paused = false;
          s.blocks = blocks;
          ++active;
        }
        if (s.paused) continue;
        const bool decodes = s.computed >= s.prompt;
        views.push_back({.left = decodes ? 1 : s.prompt - s.computed,
                         .decodes = decodes,
                         .room = s.blocks * kBlock - s.computed,
                         .priority = 0});
        index.push_back(i);
      }
      const StepPlan plan =
          PlanStep(views, {.prompt_rows = 20, .available_blocks = kTotal - used()},
                   [&](size_t i) { return states[index[i]].blocks; });
      ASSERT_TRUE(std::any_of(plan.rows.begin(), plan.rows.end(), [](int64_t n) { return n > 0; }))
          << "seed " << seed;
      ASSERT_FALSE(plan.preempted[0]) << "seed " << seed;
      for (size_t i = 0; i < views.size(); ++i) {
        State& s = states[index[i]];
        if (plan.preempted[i]) {
          ASSERT_EQ(plan.rows[i], 0);
          s.prompt = std::max(s.prompt, s.computed + (views[i].decodes ? 1 : 0));
          s.answer -= views[i].decodes ? s.prompt - s.computed : 0;
          s.computed = s.blocks = 0;
          s.paused = true;
        }
        s.computed += plan.rows[i];
        s.blocks = std::max(s.blocks, (s.computed + kBlock - 1) / kBlock);
      }
      ASSERT_LE(used(), kTotal) << "seed " << seed;
      std::erase_if(states, [](const State& s) { return s.computed >= s.prompt + s.answer; });
    }
    EXPECT_TRUE(states.empty()) << "seed " << seed;
  }
}

TEST(SchedulerTest, TheLongestPrefixWinsUnlessItsWorkerIsBusy) {
  EXPECT_GT(RouteScore(200, 0.5), RouteScore(40, 0));
  EXPECT_LT(RouteScore(100, 0.7), RouteScore(40, 0));
  EXPECT_LT(RouteScore(1000, 0.98), RouteScore(0, 0)) << "no worker stands idle beside a full one";
  EXPECT_GT(RouteScore(1000, 0.9), RouteScore(0, 0));
  EXPECT_EQ(RouteScore(100, 1), 0);
}

StepLimits InTime(double seconds, int64_t rows = 512) {
  StepLimits limits = {.prompt_rows = rows, .prompt_seconds = seconds, .available_blocks = 1000};
  limits.least_rows = 16;
  limits.row_seconds = 0.002;
  limits.key_seconds = 1e-6;
  return limits;
}

TEST(SchedulerTest, PromptsShareTimeAndLaterRowsTakeMoreOfIt) {
  struct Case {
    std::vector<SequenceView> running;
    double seconds;
    Rows expected;
  };
  const auto at = [](int64_t left, int64_t computed) {
    return SequenceView{.left = left, .computed = computed};
  };
  for (const Case& c : std::vector<Case>{
           {{Decodes(), at(2000, 0)}, 0.120, {1, 59}},     // 59 x 2 ms and 59 x 60 / 2 keys
           {{Decodes(), at(2000, 1000)}, 0.120, {1, 39}},  // 3 ms each
           {{Decodes(), at(2000, 2000)}, 0.120, {1, 29}},
           {{Decodes(), at(2000, 2000)}, 0.001, {1, 16}},  // never less
           {{Decodes(), at(5, 0)}, 0.120, {1, 5}},
           {{Decodes(), at(2000, 0)}, 100.0, {1, 512}},
           // Half of the time to the first, the rest to the shortest.
           {{Decodes(), at(2000, 1000), at(900, 0), at(100, 0)}, 0.120, {1, 19, 0, 31}},
           {{Decodes(), at(2000, 1000), at(900, 0), at(10, 0)}, 0.120, {1, 19, 21, 10}},
           {{Decodes(), at(2000, 1000), at(900, 1000)}, 0.001, {1, 8, 8}},
       }) {
    const StepPlan plan = PlanStep(c.running, InTime(c.seconds), [](size_t) { return 0; });
    EXPECT_EQ(plan.rows, c.expected) << c.seconds;
  }
}

TEST(SchedulerTest, APromptStopsBeforeAPictureThatMayNotBegin) {
  const Rows early = {2, 30}, late = {10, 30}, at_once = {0};
  const auto with = [](const Rows& starts, int64_t computed, int64_t left = 100) {
    return SequenceView{.left = left, .computed = computed, .picture_starts = starts};
  };
  struct Case {
    std::vector<SequenceView> running;
    int64_t pictures;
    Rows expected;
  };
  for (const Case& c : std::vector<Case>{
           {{with(early, 0)}, 9, {64}},
           {{with(early, 0)}, 2, {64}},
           {{with(early, 0)}, 1, {30}},
           {{with(early, 0)}, 0, {2}},
           {{with(early, 2)}, 1, {28}},
           {{with(early, 3)}, 1, {64}},
           {{with(early, 30)}, 1, {64}},
           {{with(early, 31)}, 0, {64}},
           {{with(early, 0, 20)}, 1, {20}},
           // The first one takes its half, with the picture, then the shortest what is left.
           {{with(early, 0), with(late, 0, 90)}, 1, {30, 10}},
           {{with(late, 0, 40), with(at_once, 0, 10)}, 1, {30, 0}},
           {{with(at_once, 1, 40), with(at_once, 0, 10)}, 1, {40, 10}},
           {{Decodes(), with(at_once, 0), Decodes()}, 0, {1, 0, 1}},
       }) {
    const StepLimits limits = {.prompt_rows = 64, .pictures = c.pictures, .available_blocks = 1000};
    EXPECT_EQ(PlanStep(c.running, limits, [](size_t) { return 0; }).rows, c.expected);
  }
}

// A device on which a step costs 50 ms, 1.5 ms a row and a microsecond a key.
double Device(const StepWork& work) {
  return 0.050 + 0.0015 * static_cast<double>(work.rows()) + 1e-6 * static_cast<double>(work.keys);
}

TEST(LimitPromptsTest, AnswersWaitSoManyTimesAsLongAndNoLonger) {
  StepCost cost;
  StepWork decoding = {.decode_rows = 8, .keys = 800};
  EXPECT_EQ(LimitPrompts(cost, {}, 512, 2.9).prompt_rows, 512) << "nobody to hold up";
  EXPECT_GT(LimitPrompts(cost, {}, 512, 2.9).pictures, 100);
  EXPECT_EQ(LimitPrompts(cost, decoding, 512, 2.9).pictures, 1);
  EXPECT_EQ(LimitPrompts(cost, decoding, 512, 2.9).prompt_rows, 24) << "nothing is known";
  EXPECT_EQ(LimitPrompts(cost, decoding, 10, 2.9).prompt_rows, 10);
  for (int64_t done = 0; done < 1024; done += 512) {
    const StepWork work = {.prompt_rows = 512, .keys = KeysOf(done, 512)};
    cost.Observe(work, Device(work));
  }
  for (int i = 0; i < 30; ++i) cost.Observe(decoding, Device(decoding));
  const double usual = Device(decoding);
  std::vector<double> times;
  for (int64_t computed = 0; computed < 2048;) {
    const std::vector<SequenceView> running = {{.left = 2048 - computed, .computed = computed}};
    StepLimits limits = LimitPrompts(cost, decoding, 512, 2.9);
    limits.available_blocks = 1000;
    const int64_t rows = PlanStep(running, limits, [](size_t) { return 0; }).rows[0];
    ASSERT_GE(rows, 16);
    StepWork work = decoding;
    work.prompt_rows = rows;
    work.keys += KeysOf(computed, rows);
    const double seconds = Device(work);
    cost.Observe(work, seconds);
    computed += rows;
    if (computed < 2048) times.push_back(seconds / usual);
  }
  for (const double times_as_long : times) {
    EXPECT_LT(times_as_long, 2.95);
    EXPECT_GT(times_as_long, 2.7) << "nor is time wasted";
  }
}

TEST(LimitPromptsTest, StepsGrowWithWhatIsKnown) {
  StepCost cost;
  const StepWork decoding = {.decode_rows = 4, .keys = 40};
  cost.Observe(decoding, 0.050);
  StepWork few = {.decode_rows = 4, .prompt_rows = 8, .keys = 100};
  cost.Observe(few, 0.050);  // as fast as without: how fast are many?
  EXPECT_EQ(LimitPrompts(cost, decoding, 512, 2.9).prompt_rows, 28);
  few.prompt_rows = 60;
  cost.Observe(few, 0.120);
  EXPECT_EQ(LimitPrompts(cost, decoding, 512, 2.9).prompt_rows, 124);
}

}  // namespace
}  // namespace llava
