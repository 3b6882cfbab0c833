// Workers whose device never answers: staged by a model made of rules, given up by the engine.

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "server/llm/engine.h"
#include "server/llm/step_watch.h"
#include "tests/server/llm/rule_runner.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

class EngineHangTest : public ::testing::Test {
 protected:
  ~EngineHangTest() override {
    LetGo();
    engine_.reset();
    MutexLock lock(switches_->mutex);
    EXPECT_EQ(switches_->alive, 0) << "also those that were given up are gone";
  }

  // Longer than a step that does not hang is held up on a busy machine.
  static constexpr std::chrono::milliseconds kStepLimit = kSlowdown * std::chrono::seconds(4);

  void Make(int workers = 1, int respawns = 5, std::chrono::milliseconds step_limit = kStepLimit) {
    const auto factory = [this](int, LoadWatch&) {
      {
        MutexLock lock(switches_->mutex);
        ++loads_;
        while (hang_load_ && switches_->hang) switches_->changed.Wait(switches_->mutex);
      }
      return std::make_unique<RuleRunner>(switches_, 1000);
    };
    LlmEngine::Options options;
    options.max_running = 8;
    options.step_limit = step_limit;
    options.load_limit = load_limit_;
    options.respawn_delay = std::chrono::milliseconds(1);
    options.respawns = respawns;
    LoadedLanguage model = RuleModel(workers, factory);
    model.info.device = device_;
    model.checked = checked_;
    engine_ = std::make_unique<LlmEngine>(options, std::move(model), metrics_, LlmEngine::Places{});
  }
  absl::Status Start(int workers = 1, int respawns = 5,
                     std::chrono::milliseconds step_limit = kStepLimit) {
    Make(workers, respawns, step_limit);
    return engine_->WaitUntilReady();
  }
  std::shared_ptr<Collector> Ask(int32_t first) { return Ask(RuleIds(5, first)); }
  std::shared_ptr<Collector> Ask(std::vector<int32_t> ids, uint32_t tokens = 5) {
    auto sink = std::make_shared<Collector>();
    GenerateJob job = RuleJob(ids[0], tokens, sink, static_cast<int64_t>(ids.size()));
    job.ids = std::move(ids);
    EXPECT_TRUE(engine_->Submit(std::move(job)).ok());
    return sink;
  }
  void LetGo() {
    MutexLock lock(switches_->mutex);
    switches_->hang = false;
    switches_->changed.NotifyAll();
  }
  void Hang() {
    MutexLock lock(switches_->mutex);
    switches_->hang = true;
  }
  void Hold(bool hold) {
    MutexLock lock(switches_->mutex);
    switches_->hold = hold;
    switches_->changed.NotifyAll();
  }
  int Hanging() {
    MutexLock lock(switches_->mutex);
    return switches_->hanging;
  }
  bool Held() {
    MutexLock lock(switches_->mutex);
    return switches_->held;
  }
  int Loads() {
    MutexLock lock(switches_->mutex);
    return loads_;
  }
  void HangLoads() {
    MutexLock lock(switches_->mutex);
    hang_load_ = true;
  }
  int Runners() {
    MutexLock lock(switches_->mutex);
    return switches_->alive;
  }

  std::string device_ = "cpu";
  std::shared_ptr<std::atomic<double>> checked_;
  std::chrono::milliseconds load_limit_{0};
  int loads_ = 0;           // begun; under the switches' mutex, as the next one
  bool hang_load_ = false;  // while they hang
  Metrics metrics_{"llm"};
  std::shared_ptr<RuleRunner::Switches> switches_ = std::make_shared<RuleRunner::Switches>();
  std::unique_ptr<LlmEngine> engine_;
};

TEST_F(EngineHangTest, AnswersOfAWorkerThatHangsEndAndAnotherTakesItsPlace) {
  ASSERT_TRUE(Start().ok());
  Hold(true);
  const auto first = Ask(9);
  while (!Held()) std::this_thread::yield();  // the next step takes all that waits
  const auto stuck = Ask(RuleRunner::kHang), beside = Ask(10);
  Hold(false);
  for (const auto& sink : {first, stuck, beside}) {
    const absl::Status status = sink->Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable)
        << "so that the gateway goes elsewhere";
    EXPECT_THAT(std::string(status.message()), HasSubstr("hangs"));
  }
  EXPECT_EQ(engine_->running(), 0);
  EXPECT_TRUE(engine_->hangs());
  const auto next = Ask(10);
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_EQ(next->ids.size(), 5u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_worker_respawns_total 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"ready\"} 1"));
  EXPECT_EQ(engine_->failure(), "");
  // The call comes back after all: nobody hears of it, and the thread takes its model along.
  EXPECT_EQ(Runners(), 2);
  LetGo();
  while (engine_->hangs() || Runners() > 1) std::this_thread::yield();
  const auto last = Ask(11);
  EXPECT_TRUE(last->Wait().ok());
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_kv_bytes 0"));
}

TEST_F(EngineHangTest, AnswersWhoseStepFailedEndWhenTheDeviceHangsInItsTest) {
  ASSERT_TRUE(Start().ok());
  {
    MutexLock lock(switches_->mutex);
    switches_->hang_warm_up = true;
  }
  const absl::Status status = Ask(RuleRunner::kThrow)->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("hangs"));
  EXPECT_EQ(engine_->running(), 0);
}

TEST_F(EngineHangTest, TheOtherWorkersGoOn) {
  ASSERT_TRUE(Start(2).ok());
  const auto stuck = Ask(RuleRunner::kHang);
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(Ask(10 + i)->Wait().ok());
  EXPECT_EQ(stuck->Wait().code(), absl::StatusCode::kUnavailable);
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(Ask(10 + i)->Wait().ok());
}

// It hangs until the test lets it go: what ends before that ended on the other worker.
TEST_F(EngineHangTest, AWorkerThatHangsHoldsUpNobodyElse) {
  ASSERT_TRUE(Start(2, 5, std::chrono::hours(1)).ok());
  const auto stuck = Ask(RuleRunner::kHang);
  while (Hanging() == 0) std::this_thread::yield();
  {
    MutexLock lock(switches_->mutex);
    switches_->step_time = std::chrono::milliseconds(5);
  }
  std::vector<std::shared_ptr<Collector>> sinks;
  Hold(true);  // the other one, until all are there
  for (int i = 0; i < 8; ++i) sinks.push_back(Ask(RuleIds(5, 10 + i), 500));  // 2.5 s
  Hold(false);
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Wait().ok());
  {
    MutexLock lock(switches_->mutex);
    EXPECT_EQ(switches_->most_together, 8u) << "none was left to the one that hangs";
  }
  LetGo();
  EXPECT_TRUE(stuck->Wait().ok());
}

TEST_F(EngineHangTest, NoJobWaitsForAWorkerThatHangsAndKnowsItsBeginning) {
  ASSERT_TRUE(Start(2, 5, std::chrono::hours(1)).ok());
  std::vector<int32_t> ids = RuleIds(100, 10);
  EXPECT_TRUE(Ask(ids)->Wait().ok());
  ids.push_back(RuleRunner::kHang);
  const auto stuck = Ask(ids);  // to where its beginning is known
  while (Hanging() == 0) std::this_thread::yield();
  ids.back() = 11;
  const auto next = Ask(ids);
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_EQ(next->cached, 0);
  LetGo();
  EXPECT_TRUE(stuck->Wait().ok());
  EXPECT_EQ(stuck->cached, 100);
}

TEST_F(EngineHangTest, AWorkerThatHangsWhenItCopiesABlockIsGivenUp) {
  ASSERT_TRUE(Start().ok());
  EXPECT_TRUE(Ask(RuleIds(40, 10))->Wait().ok());
  {
    MutexLock lock(switches_->mutex);
    switches_->hang_copy = true;
  }
  std::vector<int32_t> ids = RuleIds(39, 10);  // parts from it within a block
  ids.push_back(11);
  const absl::Status status = Ask(ids)->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("hangs"));
  EXPECT_EQ(engine_->running(), 0);
  EXPECT_TRUE(Ask(12)->Wait().ok()) << "another one has taken its place";
}

TEST_F(EngineHangTest, AWorkerThatHangsAgainAndAgainIsGivenUp) {
  ASSERT_TRUE(Start(1, /*respawns=*/1).ok());
  for (int life = 0; life < 2; ++life) {
    EXPECT_EQ(Ask(RuleRunner::kHang)->Wait().code(), absl::StatusCode::kUnavailable);
  }
  while (engine_->failure().empty()) std::this_thread::yield();
  EXPECT_THAT(engine_->failure(), HasSubstr("--step-limit"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"failed\"} 1"));
  EXPECT_EQ(engine_->Submit(RuleJob(10, 5, std::make_shared<Collector>())).code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(EngineHangTest, AWorkerThatWorksBetweenItsHangsIsNotGivenUp) {
  ASSERT_TRUE(Start(1, /*respawns=*/1).ok());
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(Ask(10)->Wait().ok()) << i;
    EXPECT_EQ(Ask(RuleRunner::kHang)->Wait().code(), absl::StatusCode::kUnavailable);
    LetGo();
    while (engine_->hangs()) std::this_thread::yield();
    Hang();
  }
  EXPECT_TRUE(Ask(10)->Wait().ok());
  EXPECT_EQ(engine_->given_up(), "");
}

TEST_F(EngineHangTest, CallsThatNeverComeBackDoNotTakeOneModelAfterTheOther) {
  ASSERT_TRUE(Start(1, /*respawns=*/1).ok());
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(Ask(10)->Wait().ok()) << i;
    EXPECT_EQ(Ask(RuleRunner::kHang)->Wait().code(), absl::StatusCode::kUnavailable);
  }
  while (engine_->failure().empty()) std::this_thread::yield();
  EXPECT_EQ(Runners(), 2);
}

TEST_F(EngineHangTest, AModelWhoseWarmUpHangsIsNotReady) {
  {
    MutexLock lock(switches_->mutex);
    switches_->hang_warm_up = true;
  }
  const absl::Status status = Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--step-limit"));
}

TEST_F(EngineHangTest, PromptsComputedAheadDoNotHangWithIt) {
  ASSERT_TRUE(Start().ok());
  WarmPrompt prompt;
  prompt.ids.assign(20, RuleRunner::kHang);
  engine_->Prewarm({prompt}, LlmEngine::Clock::time_point::max());
  EXPECT_TRUE(Ask(10)->Wait().ok());
}

TEST_F(EngineHangTest, StoppingDoesNotWaitForWhatWasGivenUp) {
  ASSERT_TRUE(Start().ok());
  const auto stuck = Ask(RuleRunner::kHang);
  while (Hanging() == 0) std::this_thread::yield();
  std::thread stopper([this] { engine_->Stop(); });  // before and after it is given up
  EXPECT_EQ(stuck->Wait().code(), absl::StatusCode::kUnavailable);
  stopper.join();
  EXPECT_TRUE(engine_->hangs());
}

// A kernel of a GPU that does not end lets no other thread free memory there: that would hang, too.
TEST_F(EngineHangTest, WhereAGpuHangsNoOtherModelIsLoaded) {
  device_ = "cuda:0";
  ASSERT_TRUE(Start().ok());
  EXPECT_TRUE(Ask(10)->Wait().ok());
  EXPECT_EQ(Ask(RuleRunner::kHang)->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return !engine_->failure().empty(); }));
  EXPECT_THAT(engine_->given_up(), HasSubstr("--step-limit"));
  EXPECT_EQ(Loads(), 1);
  engine_->Stop();
  EXPECT_TRUE(engine_->hangs());
}

TEST_F(EngineHangTest, AGpuWhoseFirstWarmUpHangsIsToldOf) {
  device_ = "cuda:0";
  {
    MutexLock lock(switches_->mutex);
    switches_->hang_warm_up = true;
  }
  EXPECT_THAT(std::string(Start().message()), HasSubstr("--step-limit"));
  EXPECT_THAT(engine_->given_up(), HasSubstr("--step-limit"));
}

TEST_F(EngineHangTest, ALoadThatHangsIsGivenUp) {
  load_limit_ = std::chrono::milliseconds(50);
  HangLoads();
  for (const char* const device : {"cpu", "cuda:0"}) {
    device_ = device;
    const absl::Status status = Start();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("longer than 50 ms (a multiple"));
    EXPECT_EQ(engine_->load_hung(), device_ == "cpu" ? "" : status.message());
    EXPECT_EQ(engine_->given_up(), "");
    engine_->Stop();
    EXPECT_TRUE(engine_->hangs());
    LetGo();
    EXPECT_TRUE(Eventually([&] { return !engine_->hangs(); }));
    Hang();
  }
}

TEST_F(EngineHangTest, ALoadThatWaitsForFilesThatAreCheckedIsNotGivenUp) {
  load_limit_ = kSlowdown * std::chrono::seconds(1);
  HangLoads();
  checked_ = std::make_shared<std::atomic<double>>(0);
  std::thread checks([&] {
    const auto end = std::chrono::steady_clock::now() + load_limit_ * 3 / 2;
    for (; std::chrono::steady_clock::now() < end;
         std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
      *checked_ = *checked_ + 1e-6;
    }
    LetGo();
  });
  EXPECT_TRUE(Start().ok());
  checks.join();
}

TEST_F(EngineHangTest, AWorkerThatHangsWhileItBeginsAnewIsGivenUp) {
  load_limit_ = kSlowdown * std::chrono::seconds(2);
  ASSERT_TRUE(Start().ok());
  HangLoads();
  {
    MutexLock lock(switches_->mutex);
    switches_->dead = true;
  }
  EXPECT_EQ(Ask(10)->Wait().code(), absl::StatusCode::kUnavailable);
  const auto waits = Ask(11);
  EXPECT_EQ(waits->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return !engine_->failure().empty(); }));
  EXPECT_THAT(engine_->given_up(), HasSubstr("of the weights"));
  EXPECT_EQ(Loads(), 2);
  engine_->Stop();
  EXPECT_TRUE(engine_->hangs());
}

TEST_F(EngineHangTest, StoppingDoesNotWaitForWhatMayHangEither) {
  ASSERT_TRUE(Start(2, 5, std::chrono::hours(1)).ok());
  const auto stuck = Ask(RuleRunner::kHang);
  while (Hanging() == 0) std::this_thread::yield();
  engine_->Stop(std::chrono::milliseconds(1));
  EXPECT_EQ(stuck->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(engine_->hangs());
  EXPECT_EQ(engine_->given_up(), "");
}

TEST_F(EngineHangTest, StoppingDoesNotWaitForAModelThatIsBeingLoaded) {
  HangLoads();
  Make(1, 5, std::chrono::milliseconds(0));
  while (Loads() == 0) std::this_thread::yield();
  engine_->Stop(std::chrono::milliseconds(1));
  EXPECT_TRUE(engine_->hangs());
}

TEST(StepWatchTest, ALoadMayTakeLongAsLongAsItGoesOn) {
  StepWatch watch;
  std::atomic<double> share = 0;
  const auto progress = [&] { return share.load(); };
  bool loads = false;
  const auto look = [&](StepWatch::Limits limits) {
    return watch.GiveUpIfLonger(limits, [&](bool which) { loads = which; });
  };
  const StepWatch::Limits none, no_load = {.load = std::chrono::milliseconds(1)};
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
  watch.Load(progress, [&] {
    for (int i = 0; i < 5; ++i) {
      pause();
      share = share + 0.1;
      EXPECT_FALSE(look(no_load)) << "it has gone on";
    }
    pause();
    EXPECT_FALSE(look(none));
    EXPECT_FALSE(look({.step = std::chrono::milliseconds(1)})) << "it is no step";
  });
  watch.Run([&] {
    pause();
    EXPECT_FALSE(look(no_load)) << "it is no load";
  });
  EXPECT_THROW(watch.Load(progress,
                          [&] {
                            pause();
                            EXPECT_TRUE(look(no_load));
                          }),
               WorkerGivenUp);
  EXPECT_TRUE(loads);
}

TEST(StepWatchTest, GivesUpOnlyWhatTakesTooLongAndOnce) {
  StepWatch watch;
  int given_up = 0;
  const auto look = [&](std::chrono::milliseconds limit) {
    return watch.GiveUpIfLonger({.step = limit}, [&](bool) { ++given_up; });
  };
  EXPECT_FALSE(look(std::chrono::milliseconds(-1))) << "no call";
  EXPECT_THROW(watch.Run([] { throw std::invalid_argument("its own"); }), std::invalid_argument);
  watch.Run([&] { EXPECT_FALSE(look(std::chrono::hours(1))); });
  EXPECT_THROW(watch.Run([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_TRUE(look(std::chrono::milliseconds(1)));
    EXPECT_FALSE(look(std::chrono::milliseconds(1)));
    throw std::invalid_argument("too late");
  }),
               WorkerGivenUp);
  EXPECT_EQ(given_up, 1);
}

}  // namespace
}  // namespace llava
