#include "server/llm/scheduler.h"

#include <gmock/gmock.h>

namespace llava {
namespace {

using Tokens = std::vector<int64_t>;

TEST(SchedulerTest, JoinsWhileBothLimitsHold) {
  const Capacity capacity{.max_running = 2, .kv_tokens = 100};
  struct Row {
    int64_t longest;
    Load load;
    bool expected;
  };
  for (const Row& row : std::vector<Row>{
           {100, {0, 0}, true},
           {101, {0, 0}, false},
           {60, {1, 40}, true},
           {61, {1, 40}, false},
           {1, {2, 40}, false},
       }) {
    EXPECT_EQ(CanJoin(row.longest, row.load, capacity), row.expected)
        << row.longest << " beside " << row.load.running << "/" << row.load.kv_tokens;
  }
}

TEST(SchedulerTest, MixesOneTokenOfEachAnswerWithAChunkOfPrompts) {
  struct Row {
    std::vector<SequenceView> running;
    int64_t chunk;
    Tokens expected;
  };
  for (const Row& row : std::vector<Row>{
           {{}, 8, {}},
           {{{0, 0}, {0, 0}}, 8, {1, 1}},
           {{{20, 0}}, 8, {8}},
           {{{5, 0}}, 8, {5}},
           {{{0, 0}, {20, 0}, {0, 0}}, 8, {1, 8, 1}},
           {{{5, 0}, {20, 0}, {4, 0}}, 8, {5, 3, 0}},
           {{{5, 0}, {20, 1}, {0, 9}}, 8, {0, 8, 1}},
           {{{5, -1}, {2, 0}, {2, 0}}, 8, {4, 2, 2}},
           {{{1, 0}, {1, 0}, {1, 0}}, 2, {1, 1, 0}},
       }) {
    EXPECT_EQ(PlanStep(row.running, row.chunk), row.expected);
  }
}

TEST(SchedulerTest, EveryPromptEndsSomeTime) {
  std::vector<SequenceView> running = {{100, 0}, {33, 0}, {1, 0}};
  for (int step = 0; step < 200; ++step) {
    const Tokens tokens = PlanStep(running, 7);
    int64_t prompt_tokens = 0;
    for (size_t i = 0; i < running.size(); ++i) {
      if (running[i].prefill_left == 0) continue;
      prompt_tokens += tokens[i];
      running[i].prefill_left -= tokens[i];
      ASSERT_GE(running[i].prefill_left, 0);
    }
    EXPECT_LE(prompt_tokens, 7);
  }
  for (const SequenceView& view : running) EXPECT_EQ(view.prefill_left, 0);
}

}  // namespace
}  // namespace llava
