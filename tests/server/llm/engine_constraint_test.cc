// Answers under a constraint, by a model that would rather say something else.

#include <gmock/gmock.h>

#include <string>

#include "model/grammar/grammar.h"
#include "server/llm/engine.h"
#include "tests/server/llm/rule_runner.h"

namespace llava {
namespace {

class EngineConstraintTest : public ::testing::Test {
 protected:
  EngineConstraintTest() : engine_({}, RuleModel(1, Factory()), metrics_, LlmEngine::Places{}) {}
  void SetUp() override { ASSERT_TRUE(engine_.WaitUntilReady().ok()); }

  RunnerFactory Factory() {
    return [this](int, LoadWatch&) { return std::make_unique<RuleRunner>(switches_, 1000); };
  }

  GenerateJob Job(const std::vector<std::string>& choices, std::shared_ptr<Collector> sink) {
    GenerateJob job = RuleJob(10, 100, std::move(sink));
    const auto constraint =
        engine_.constraints().Get(choices.front(), [&] { return grammar::Choices(choices); });
    EXPECT_TRUE(constraint.ok()) << constraint.status();
    job.matcher = std::make_unique<grammar::Matcher>(*constraint);
    return job;
  }
  std::string TextOf(const Collector& sink) { return engine_.info().tokenizer->Decode(sink.ids); }

  Metrics metrics_{"llm"};
  std::shared_ptr<RuleRunner::Switches> switches_ = std::make_shared<RuleRunner::Switches>();
  LlmEngine engine_;  // last: its threads use the fields above
};

TEST_F(EngineConstraintTest, OnlyWhatIsAllowedIsSaidAndNothingBehindIt) {
  auto sink = std::make_shared<Collector>();
  ASSERT_TRUE(engine_.Submit(Job({"a lion", "two apples"}, sink)).ok());
  ASSERT_TRUE(sink->Wait().ok());
  EXPECT_THAT(TextOf(*sink), ::testing::AnyOf("a lion", "two apples"));
  EXPECT_EQ(sink->end, AnswerEnd::kStop);
  EXPECT_THAT(metrics_.Render(), ::testing::HasSubstr("llava_llm_mask_seconds_count"));
}

TEST_F(EngineConstraintTest, ItsTokensAreDrawnByTheHost) {
  {
    MutexLock lock(switches_->mutex);
    switches_->draws = true;
  }
  auto bound = std::make_shared<Collector>(), free = std::make_shared<Collector>();
  ASSERT_TRUE(engine_.Submit(Job({"a lion"}, bound)).ok());
  ASSERT_TRUE(engine_.Submit(RuleJob(10, 3, free)).ok());
  ASSERT_TRUE(bound->Wait().ok());
  ASSERT_TRUE(free->Wait().ok());
  EXPECT_EQ(TextOf(*bound), "a lion");
  EXPECT_EQ(free->ids, (std::vector<int32_t>{300, 301, 302}));
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->drawn, 3);
}

TEST_F(EngineConstraintTest, WhoIsCutShortSaysSo) {
  auto cut = std::make_shared<Collector>(), stopped = std::make_shared<Collector>();
  GenerateJob job = Job({"two apples"}, cut);
  job.stop.max_new_tokens = 2;
  ASSERT_TRUE(engine_.Submit(std::move(job)).ok());
  job = Job({"two apples"}, stopped);
  job.stop.stop = {"app"};
  ASSERT_TRUE(engine_.Submit(std::move(job)).ok());
  ASSERT_TRUE(cut->Wait().ok());
  ASSERT_TRUE(stopped->Wait().ok());
  EXPECT_EQ(cut->end, AnswerEnd::kLength);
  EXPECT_EQ(cut->ids.size(), 2u);
  EXPECT_EQ(stopped->end, AnswerEnd::kLength) << "the text was cut within";
}

TEST_F(EngineConstraintTest, TheLastTokenAllowedMayBeTheLastOfTheText) {
  auto whole = std::make_shared<Collector>(), same = std::make_shared<Collector>();
  ASSERT_TRUE(engine_.Submit(Job({"two apples"}, whole)).ok());
  ASSERT_TRUE(whole->Wait().ok());
  GenerateJob job = Job({"two apples"}, same);
  job.stop.max_new_tokens = static_cast<uint32_t>(whole->ids.size());
  ASSERT_TRUE(engine_.Submit(std::move(job)).ok());
  ASSERT_TRUE(same->Wait().ok());
  EXPECT_EQ(same->end, AnswerEnd::kStop);
}

TEST_F(EngineConstraintTest, WhatWasResumedAtItsEndEnds) {
  auto whole = std::make_shared<Collector>(), resumed = std::make_shared<Collector>();
  ASSERT_TRUE(engine_.Submit(Job({"two apples"}, whole)).ok());
  ASSERT_TRUE(whole->Wait().ok());
  GenerateJob job = Job({"two apples"}, resumed);
  job.resumed_ids = whole->ids;
  for (const int32_t id : whole->ids) ASSERT_TRUE(job.matcher->Advance(id));
  ASSERT_TRUE(engine_.Submit(std::move(job)).ok());
  ASSERT_TRUE(resumed->Wait().ok());
  EXPECT_EQ(resumed->end, AnswerEnd::kStop);
  EXPECT_TRUE(resumed->ids.empty());
}

// An end token is none of the text, and comes when the text may end.
TEST_F(EngineConstraintTest, TokensThatEndComeAtTheEndOnly) {
  auto sink = std::make_shared<Collector>();
  GenerateJob job = Job({"two", "two apples"}, sink);
  job.stop.stop_token_ids = {RuleRunner::kFirst};  // what the model would say first
  ASSERT_TRUE(engine_.Submit(std::move(job)).ok());
  ASSERT_TRUE(sink->Wait().ok());
  EXPECT_THAT(TextOf(*sink), ::testing::AnyOf("two", "two apples"));
  EXPECT_EQ(sink->end, AnswerEnd::kStop);
}

// The caller's fault, not one of the model's.
TEST_F(EngineConstraintTest, TokensThatEndMayBeAllThatAreAllowed) {
  auto sink = std::make_shared<Collector>(), next = std::make_shared<Collector>();
  GenerateJob job = Job({"Q"}, sink);
  std::vector<uint64_t> allowed((engine_.info().tokenizer->vocab_size() + 63) / 64);
  job.matcher->FillMask(allowed);
  for (int32_t id = 0; id < engine_.info().tokenizer->vocab_size(); ++id) {
    if (((allowed[static_cast<size_t>(id) / 64] >> (id % 64)) & 1) != 0) {
      job.stop.stop_token_ids.push_back(id);
    }
  }
  ASSERT_FALSE(job.stop.stop_token_ids.empty());
  ASSERT_TRUE(engine_.Submit(std::move(job)).ok());
  const absl::Status status = sink->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("stop_token_ids leave no token"));
  ASSERT_TRUE(engine_.Submit(Job({"a lion"}, next)).ok());
  EXPECT_TRUE(next->Wait().ok());
}

}  // namespace
}  // namespace llava
