// Pictures, which are projected as a whole, in the steps of an engine.

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "model/text/tokenizer.h"
#include "server/llm/engine.h"
#include "tests/server/llm/rule_runner.h"

namespace llava {
namespace {

// What a step computed of prompts.
struct Step {
  bool answers = false;  // beside them
  int pictures = 0;      // begun
};

struct Record {
  Mutex mutex;
  std::vector<Step> steps LLAVA_GUARDED_BY(mutex);
  std::map<int32_t, int> prompt_steps LLAVA_GUARDED_BY(mutex);  // by first id
  std::chrono::milliseconds projection LLAVA_GUARDED_BY(mutex){0};
};

class PictureRunner : public RuleRunner {
 public:
  PictureRunner(std::shared_ptr<Switches> switches, std::shared_ptr<Record> record)
      : RuleRunner(std::move(switches), 1000), record_(std::move(record)) {}

  void Begin(uint64_t sequence, std::span<const int32_t> ids,
             std::span<const std::shared_ptr<const StoredFeatures>> features) override {
    Prompt& prompt = prompts_[sequence] = {.first_id = ids[0]};
    for (const int32_t id : ids) {
      const int64_t begin = prompt.rows;
      prompt.rows += id == kImageToken ? features[prompt.pictures.size()]->rows : 1;
      if (id == kImageToken) prompt.pictures.push_back({begin, prompt.rows});
    }
    RuleRunner::Begin(sequence, ids, features);
  }

  StepLogits Step(std::span<const Part> parts) override {
    std::chrono::milliseconds time{0};
    {
      MutexLock lock(record_->mutex);
      llava::Step step;
      for (const Part& part : parts) {
        Prompt& prompt = prompts_.at(part.sequence);
        if (part.sequence == 0) continue;  // a warm-up
        step.answers |= part.first >= prompt.rows;
        if (part.first < prompt.rows) ++record_->prompt_steps[prompt.first_id];
        step.pictures += static_cast<int>(std::erase_if(prompt.pictures, [&](const auto& picture) {
          return picture.begin < part.first + part.rows && part.first < picture.end;
        }));
      }
      record_->steps.push_back(step);
      if (step.pictures > 0) time = record_->projection;
    }
    std::this_thread::sleep_for(time);
    return RuleRunner::Step(parts);
  }

 private:
  struct Picture {
    int64_t begin, end;
  };
  struct Prompt {
    int32_t first_id = 0;
    int64_t rows = 0;
    std::vector<Picture> pictures = {};  // not projected yet
  };
  const std::shared_ptr<Record> record_;
  std::map<uint64_t, Prompt> prompts_;
};

class EnginePictureTest : public ::testing::Test {
 protected:
  void Start(std::chrono::milliseconds step_time, std::chrono::milliseconds projection) {
    switches_ = std::make_shared<RuleRunner::Switches>();
    record_ = std::make_shared<Record>();
    {
      MutexLock lock(switches_->mutex);
      switches_->step_time = step_time;
    }
    {
      MutexLock lock(record_->mutex);
      record_->projection = projection;
    }
    const auto factory = [this](int, LoadWatch&) {
      return std::make_unique<PictureRunner>(switches_, record_);
    };
    engine_ = std::make_unique<LlmEngine>(LlmEngine::Options{}, RuleModel(1, factory), metrics_,
                                          LlmEngine::Places{});
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }
  // kImageToken of `ids` become pictures of `rows` rows.
  std::shared_ptr<Collector> Ask(std::vector<int32_t> ids, uint32_t tokens, int64_t rows = 0) {
    auto sink = std::make_shared<Collector>();
    GenerateJob job = RuleJob(ids[0], tokens, sink, 0);
    for (const int32_t id : ids) {
      if (id != kImageToken) continue;
      StoredFeatures features;
      features.rows = rows;
      job.features.push_back(std::make_shared<const StoredFeatures>(std::move(features)));
      job.feature_keys.push_back(std::to_string(ids[0]) + "." +
                                 std::to_string(job.feature_keys.size()));
      job.picture_tokens.push_back(rows);
      job.image_tokens += rows;
    }
    job.text_tokens = static_cast<int64_t>(ids.size() - job.features.size());
    job.ids = std::move(ids);
    EXPECT_TRUE(engine_->Submit(std::move(job)).ok());
    return sink;
  }
  std::vector<Step> Steps() {
    MutexLock lock(record_->mutex);
    return std::exchange(record_->steps, {});
  }
  int PromptSteps(int32_t first_id) {
    MutexLock lock(record_->mutex);
    return record_->prompt_steps[first_id];
  }

  Metrics metrics_{"llm"};
  std::shared_ptr<RuleRunner::Switches> switches_;
  std::shared_ptr<Record> record_;
  std::unique_ptr<LlmEngine> engine_;
};

TEST_F(EnginePictureTest, BesideAnswersAStepBeginsOneAtMost) {
  Start(std::chrono::milliseconds(1), {});
  EXPECT_TRUE(Ask({9, kImageToken, kImageToken, kImageToken}, 1, 30)->Wait().ok());
  const auto begins = [](int pictures) {
    return [pictures](const Step& step) { return step.pictures == pictures; };
  };
  std::vector<Step> steps = Steps();
  EXPECT_TRUE(std::any_of(steps.begin(), steps.end(), begins(3))) << "nobody to hold up";

  const auto answer = Ask({10}, 600);
  while (answer->count == 0) std::this_thread::yield();
  std::vector<std::shared_ptr<Collector>> sinks;
  for (int32_t i = 0; i < 3; ++i) sinks.push_back(Ask({20 + i, kImageToken, 8, kImageToken}, 2, 5));
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Wait().ok());
  const auto again = Ask({20, kImageToken, 8, kImageToken}, 2, 5);
  EXPECT_TRUE(again->Wait().ok());
  EXPECT_EQ(again->cached, 11) << "all but the last row, of a picture";
  EXPECT_TRUE(answer->Wait().ok());
  int pictures = 0;
  for (const Step& step : Steps()) {
    if (step.answers) {
      EXPECT_LE(step.pictures, 1);
    }
    pictures += step.pictures;
  }
  EXPECT_EQ(pictures, 7);
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->foreign_rows, 0);
}

// How many steps a prompt of text takes beside an answer, after one with a picture.
TEST_F(EnginePictureTest, WhatProjectingTakesIsNotTakenForTheCostOfRows) {
  int least = 1000;
  for (int trial = 0; trial < 5 && least >= 10; ++trial) {  // a busy machine misleads it, too
    Start(std::chrono::milliseconds(20), std::chrono::milliseconds(600));
    const auto answer = Ask({10}, 600);
    while (answer->count == 0) std::this_thread::yield();
    EXPECT_TRUE(Ask({11, kImageToken, 8}, 1, 20)->Wait().ok());
    EXPECT_TRUE(Ask(RuleIds(400, 12), 1)->Wait().ok());
    least = std::min(least, PromptSteps(12));
    answer->Go();
    answer->Wait().IgnoreError();
  }
  EXPECT_LT(least, 10) << "with rows that seem to cost time it would take 16 a step";
}

}  // namespace
}  // namespace llava
