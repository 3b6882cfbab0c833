// The engine over a model made of rules, so that every fault and every order can be staged.

#include "server/llm/engine.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <map>
#include <set>
#include <stdexcept>

#include "server/runtime/mutex.h"
#include "tests/support/fixtures.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

// Says token kFirst + n as its n-th token. Prompts may ask for faults by their first id.
class RuleRunner : public ModelRunner {
 public:
  static constexpr int32_t kFirst = 300;
  static constexpr int32_t kThrow = 290, kNan = 291, kRefuse = 292;

  // Shared with the test.
  struct Switches {
    Mutex mutex;
    CondVar changed;
    bool hold LLAVA_GUARDED_BY(mutex) = false;           // steps wait
    bool dead LLAVA_GUARDED_BY(mutex) = false;           // every step throws
    std::vector<int32_t> begun LLAVA_GUARDED_BY(mutex);  // first ids, in order of joining
    size_t most_together LLAVA_GUARDED_BY(mutex) = 0;
  };

  explicit RuleRunner(std::shared_ptr<Switches> switches) : switches_(std::move(switches)) {}

  int64_t Begin(uint64_t sequence, std::span<const int32_t> ids,
                std::span<const std::shared_ptr<const StoredFeatures>> features,
                int64_t longest_tokens) override {
    if (ids[0] == kRefuse) throw std::invalid_argument("no such prompt");
    if (sequence > 0) {
      MutexLock lock(switches_->mutex);
      switches_->begun.push_back(ids[0]);
    }
    sequences_[sequence] = {ids[0], 0};
    return static_cast<int64_t>(ids.size());
  }
  void End(uint64_t sequence) override { sequences_.erase(sequence); }

  std::vector<std::vector<float>> Step(std::span<const Part> parts) override {
    {
      MutexLock lock(switches_->mutex);
      while (switches_->hold) switches_->changed.Wait(switches_->mutex);
      if (switches_->dead) throw std::runtime_error("device lost");
      switches_->most_together = std::max(switches_->most_together, parts.size());
    }
    std::vector<std::vector<float>> logits;
    for (const Part& part : parts) {
      State& state = sequences_.at(part.sequence);
      if (state.rule == kThrow) throw std::runtime_error("bad step");
      if (!part.sampled) continue;
      std::vector<float> row(1000, 0.0f);
      row[static_cast<size_t>(kFirst + state.said++)] = 5;
      if (state.rule == kNan && state.said == 2) row[7] = NAN;
      logits.push_back(std::move(row));
    }
    return logits;
  }
  int64_t kv_bytes() const override { return static_cast<int64_t>(sequences_.size()) * 1000; }
  int64_t image_tokens() const override { return 4; }

 private:
  struct State {
    int32_t rule;
    int said;
  };
  std::shared_ptr<Switches> switches_;
  std::map<uint64_t, State> sequences_;
};

class Collector : public AnswerSink {
 public:
  bool Started(double) override { return !gone_; }
  bool Delta(const AnswerDelta& delta) override {
    ids.insert(ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    return !gone_;
  }
  void Finished(const AnswerSummary& summary) override {
    end = summary.end;
    done_.set_value(absl::OkStatus());
  }
  void Failed(const absl::Status& status) override { done_.set_value(status); }
  bool gone() const override { return gone_; }

  absl::Status Wait() {
    auto future = done_.get_future();
    if (future.wait_for(kSlowdown * std::chrono::seconds(20)) != std::future_status::ready) {
      return absl::InternalError("no end came");
    }
    return future.get();
  }
  void Go() { gone_ = true; }

  std::vector<int32_t> ids;
  AnswerEnd end = AnswerEnd::kStop;

 private:
  std::promise<absl::Status> done_;
  std::atomic<bool> gone_ = false;
};

class EngineTest : public ::testing::Test {
 protected:
  void Start(LlmEngine::Options options = {}, int workers = 1) {
    LoadedLanguage model;
    model.info.tokenizer =
        std::make_shared<Tokenizer>(Tokenizer::Load(FixturesDir() / "tiny-llava"));
    model.info.feature_rows = model.info.feature_width = 1;
    model.info.kv_bytes_per_token = 10;
    model.info.workers = workers;
    model.factory = [this](int) {
      if (on_load_) on_load_();
      return std::make_unique<RuleRunner>(switches_);
    };
    engine_ = std::make_unique<LlmEngine>(options, std::move(model), metrics_,
                                          [this](const std::string& why) { all_failed_ = why; });
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }

  GenerateJob Job(int32_t first, uint32_t tokens, std::shared_ptr<Collector> sink,
                  int64_t prompt = 5) {
    GenerateJob job;
    job.ids.assign(static_cast<size_t>(prompt), first);
    job.text_tokens = prompt;
    job.stop.max_new_tokens = tokens;
    job.context_tokens = 1000;
    job.received = GenerateJob::Clock::now();
    job.deadline = GenerateJob::Clock::time_point::max();
    job.sink = std::move(sink);
    return job;
  }
  void Hold(bool hold) {
    MutexLock lock(switches_->mutex);
    switches_->hold = hold;
    switches_->changed.NotifyAll();
  }
  std::vector<int32_t> Begun() {
    MutexLock lock(switches_->mutex);
    return switches_->begun;
  }
  void WaitForBegun(size_t count) {
    while (Begun().size() < count) std::this_thread::yield();
  }

  Metrics metrics_{"llm"};
  std::shared_ptr<RuleRunner::Switches> switches_ = std::make_shared<RuleRunner::Switches>();
  std::string all_failed_;
  std::function<void()> on_load_;      // called on the thread of each worker that loads
  std::unique_ptr<LlmEngine> engine_;  // last: its threads use the fields above
};

TEST_F(EngineTest, RunsManyTogetherAndEachToItsEnd) {
  Start({.max_running = 8, .prefill_chunk = 3});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> sinks;
  for (int i = 0; i < 8; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(engine_->Submit(Job(10 + i, 4 + static_cast<uint32_t>(i), sinks.back())).ok());
  }
  Hold(false);
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(sinks[static_cast<size_t>(i)]->Wait().ok());
    const auto& ids = sinks[static_cast<size_t>(i)]->ids;
    ASSERT_EQ(ids.size(), 4u + static_cast<size_t>(i));
    EXPECT_EQ(ids.back(), RuleRunner::kFirst + 3 + i);
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->end, AnswerEnd::kLength);
  }
  MutexLock lock(switches_->mutex);
  EXPECT_GT(switches_->most_together, 4u);
}

TEST_F(EngineTest, AFaultyStepEndsItsSequencesAndTheEngineGoesOn) {
  Start();
  auto bad = std::make_shared<Collector>(), next = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(RuleRunner::kThrow, 5, bad)).ok());
  EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
  ASSERT_TRUE(engine_->Submit(Job(10, 5, next)).ok());
  EXPECT_TRUE(next->Wait().ok());
}

TEST_F(EngineTest, ABrokenAnswerLeavesItsNeighboursAlone) {
  Start();
  Hold(true);
  auto broken = std::make_shared<Collector>(), good = std::make_shared<Collector>(),
       refused = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(RuleRunner::kNan, 9, broken)).ok());
  ASSERT_TRUE(engine_->Submit(Job(10, 9, good)).ok());
  ASSERT_TRUE(engine_->Submit(Job(RuleRunner::kRefuse, 9, refused)).ok());
  Hold(false);
  EXPECT_EQ(broken->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(broken->ids.size(), 1u);
  EXPECT_EQ(refused->Wait().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(good->Wait().ok());
  EXPECT_EQ(good->ids.size(), 9u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_nan_logits_total 1"));
}

TEST_F(EngineTest, TellsThatAWorkerLoads) {
  std::string during;
  on_load_ = [&] { during = metrics_.Render(); };
  Start();
  EXPECT_THAT(during, HasSubstr("llava_llm_workers{state=\"loading\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"loading\"} 0"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"ready\"} 1"));
}

TEST_F(EngineTest, ADeadDeviceFailsEverybodyAndSaysSo) {
  Start();
  auto running = std::make_shared<Collector>();
  {
    MutexLock lock(switches_->mutex);
    switches_->dead = true;
  }
  ASSERT_TRUE(engine_->Submit(Job(10, 5, running)).ok());
  EXPECT_FALSE(running->Wait().ok());
  while (engine_->Submit(Job(10, 5, std::make_shared<Collector>())).ok()) std::this_thread::yield();
  engine_->Stop();
  EXPECT_THAT(all_failed_, HasSubstr("device lost"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"failed\"} 1"));
}

TEST_F(EngineTest, CancelledAndLateJobsLeaveAtTheNextStep) {
  Start({.max_running = 2});
  Hold(true);
  auto gone = std::make_shared<Collector>(), late = std::make_shared<Collector>(),
       queued = std::make_shared<Collector>(), fine = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 800, gone)).ok());
  WaitForBegun(1);
  GenerateJob with_deadline = Job(11, 800, late);
  with_deadline.deadline = GenerateJob::Clock::now();
  ASSERT_TRUE(engine_->Submit(std::move(with_deadline)).ok());
  ASSERT_TRUE(engine_->Submit(Job(12, 3, queued)).ok());
  ASSERT_TRUE(engine_->Submit(Job(13, 3, fine)).ok());
  gone->Go();
  queued->Go();
  Hold(false);
  EXPECT_EQ(gone->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(gone->ids.size(), 3u);
  EXPECT_EQ(late->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(queued->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(fine->Wait().ok());
  EXPECT_EQ(Begun(), (std::vector<int32_t>{10, 13})) << "the others did no work";
}

TEST_F(EngineTest, JoinsByPriorityAndTenantAndWithinItsMemory) {
  Start({.max_running = 2, .kv_bytes = 200});  // 20 tokens
  auto first = std::make_shared<Collector>();
  Hold(true);
  ASSERT_TRUE(engine_->Submit(Job(10, 15, first)).ok());  // 20 tokens: all there is
  WaitForBegun(1);
  std::vector<std::shared_ptr<Collector>> sinks;
  const auto submit = [&](int32_t id, const std::string& tenant, int32_t priority) {
    sinks.push_back(std::make_shared<Collector>());
    GenerateJob job = Job(id, 15, sinks.back());
    job.place.tenant = tenant;
    job.place.priority = priority;
    ASSERT_TRUE(engine_->Submit(std::move(job)).ok());
  };
  submit(20, "a", 0);
  submit(21, "a", 0);
  submit(22, "b", 0);
  submit(23, "b", 7);
  Hold(false);
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Wait().ok());
  EXPECT_EQ(Begun(), (std::vector<int32_t>{10, 23, 20, 22, 21}));
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->most_together, 1u);
}

TEST_F(EngineTest, RefusesAtTheDoor) {
  Start({.queue = 1, .max_running = 1, .kv_bytes = 200});
  const absl::Status huge = engine_->Submit(Job(10, 16, std::make_shared<Collector>()));
  EXPECT_EQ(huge.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(huge.message()), HasSubstr("21"));
  EXPECT_THAT(std::string(huge.message()), HasSubstr("20"));
  Hold(true);
  auto running = std::make_shared<Collector>(), waiting = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 5, running)).ok());
  WaitForBegun(1);
  ASSERT_TRUE(engine_->Submit(Job(11, 5, waiting)).ok());
  EXPECT_EQ(engine_->waiting(), 1);
  EXPECT_EQ(engine_->Submit(Job(12, 5, std::make_shared<Collector>())).code(),
            absl::StatusCode::kUnavailable);
  std::thread stopper([this] { engine_->Stop(); });
  const auto stopping = [this] {
    const auto status = engine_->Submit(Job(12, 5, std::make_shared<Collector>()));
    return std::string(status.message()).find("stopping") != std::string::npos;
  };
  while (!stopping()) std::this_thread::yield();
  Hold(false);
  stopper.join();
  EXPECT_EQ(waiting->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->Submit(Job(13, 5, std::make_shared<Collector>())).code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, SeveralWorkersShareTheWork) {
  Start({.max_running = 1}, 2);
  Hold(true);
  auto one = std::make_shared<Collector>(), two = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->Submit(Job(10, 5, one)).ok());
  ASSERT_TRUE(engine_->Submit(Job(11, 5, two)).ok());
  WaitForBegun(2);
  EXPECT_EQ(engine_->running(), 2);
  Hold(false);
  EXPECT_TRUE(one->Wait().ok());
  EXPECT_TRUE(two->Wait().ok());
}

}  // namespace
}  // namespace llava
