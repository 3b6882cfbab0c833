// What goes on while a worker tests its device, after a step that failed.

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "server/llm/device_turn.h"
#include "server/llm/engine.h"
#include "tests/server/llm/rule_runner.h"

namespace llava {
namespace {

class EngineCheckTest : public ::testing::Test {
 protected:
  ~EngineCheckTest() override {
    HangInTest(false);
    Hold(false);
  }

  void Start(LlmEngine::Options options, int workers) {
    const auto factory = [this](int, LoadWatch&) {
      return std::make_unique<RuleRunner>(switches_, 1000);
    };
    for (int i = 0; i < workers; ++i) turns_.push_back(std::make_shared<DeviceTurn>());
    engine_ = std::make_unique<LlmEngine>(options, RuleModel(workers, factory), metrics_,
                                          LlmEngine::Places{.turns = turns_});
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }
  std::shared_ptr<Collector> Ask(int32_t first, uint32_t tokens, int64_t prompt = 5,
                                 std::shared_ptr<Collector> sink = std::make_shared<Collector>()) {
    EXPECT_TRUE(engine_->Submit(RuleJob(first, tokens, sink, prompt)).ok());
    return sink;
  }
  void Hold(bool hold) {
    MutexLock lock(switches_->mutex);
    switches_->hold = hold;
    switches_->changed.NotifyAll();
  }
  void HangInTest(bool hang) {
    MutexLock lock(switches_->mutex);
    switches_->hang = switches_->hang_warm_up = hang;
    switches_->changed.NotifyAll();
  }
  void WaitUntilHeld() {
    const auto held = [this] {
      MutexLock lock(switches_->mutex);
      return switches_->held;
    };
    while (!held()) std::this_thread::yield();
  }
  void WaitUntilInTest() {
    const auto hangs = [this] {
      MutexLock lock(switches_->mutex);
      return switches_->hanging > 0;
    };
    while (!hangs()) std::this_thread::yield();
  }

  Metrics metrics_{"llm"};
  std::shared_ptr<RuleRunner::Switches> switches_ = std::make_shared<RuleRunner::Switches>();
  std::vector<std::shared_ptr<DeviceTurn>> turns_;
  std::unique_ptr<LlmEngine> engine_;
};

TEST_F(EngineCheckTest, AnswersThatWereNotInTheStepWaitAndGoOn) {
  Start({.max_running = 3, .prefill_chunk = 1}, 1);  // one prompt in a step
  Hold(true);
  const auto first = Ask(10, 1, 1);
  WaitUntilHeld();  // those that follow join together
  const auto bad = Ask(RuleRunner::kThrow, 5), beside = Ask(11, 20);
  HangInTest(true);
  Hold(false);
  EXPECT_TRUE(first->Wait().ok());
  WaitUntilInTest();
  EXPECT_EQ(turns_[0]->busy(), 0) << "else the test would leave the device to those that wait";
  EXPECT_EQ(engine_->running(), 2);
  const auto next = Ask(12, 5), gone = Ask(13, 5);
  gone->Go();
  EXPECT_EQ(gone->Wait().code(), absl::StatusCode::kCancelled) << "before the test has ended";
  EXPECT_EQ(engine_->waiting(), 1);
  HangInTest(false);
  EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(beside->Wait().ok());
  ASSERT_EQ(beside->ids.size(), 20u);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(beside->ids[i], RuleRunner::kFirst + i);
  EXPECT_TRUE(next->Wait().ok());
  Hold(true);
  const auto last = Ask(14, 5);
  WaitUntilHeld();
  EXPECT_EQ(turns_[0]->busy(), 1);
  Hold(false);
  EXPECT_TRUE(last->Wait().ok());
  MutexLock lock(switches_->mutex);
  EXPECT_EQ(switches_->foreign_rows, 0);
}

// Notes how far another answer is when its own begins.
class BesideCollector : public Collector {
 public:
  explicit BesideCollector(std::shared_ptr<Collector> other) : other_(std::move(other)) {}
  bool Started(double queue_seconds, int64_t cached_tokens) override {
    of_other = other_->count.load();
    return Collector::Started(queue_seconds, cached_tokens);
  }
  std::atomic<size_t> of_other = 0;

 private:
  const std::shared_ptr<Collector> other_;
};

TEST_F(EngineCheckTest, NoJobIsLeftToAWorkerThatTestsItsDevice) {
  Start({.max_running = 8}, 2);
  {
    MutexLock lock(switches_->mutex);
    switches_->step_time = std::chrono::milliseconds(5);
  }
  const auto running = Ask(10, 600);  // 3 s
  while (running->count == 0) std::this_thread::yield();
  HangInTest(true);
  const auto bad = Ask(RuleRunner::kThrow, 5);  // to the other one, which has nothing to do
  WaitUntilInTest();
  const auto next = std::make_shared<BesideCollector>(running);
  Ask(11, 2, 5, next);
  const size_t before = running->count;
  EXPECT_TRUE(next->Wait().ok()) << "while the test still runs";
  // Else it would begin when the test becomes suspect, after a second.
  EXPECT_LT(next->of_other, before + 30) << "steps of the answer that runs";
  HangInTest(false);
  EXPECT_EQ(bad->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(running->Wait().ok());
}

}  // namespace
}  // namespace llava
