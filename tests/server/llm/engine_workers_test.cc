// Workers that come and go, and threads that there are none of.

#include <gmock/gmock.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "server/llm/disposal_threads.h"
#include "server/llm/engine.h"
#include "tests/server/llm/rule_runner.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

// Threads of which there are only so many, as tests say.
class FewThreads {
 public:
  ThreadStart start() {
    return [this](std::function<void()> run) {
      if (left_-- <= 0) {
        throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
      }
      return std::thread(std::move(run));
    };
  }
  void Leave(int threads) { left_ = threads; }

 private:
  std::atomic<int> left_ = 1'000'000;
};

class EngineWorkersTest : public ::testing::Test {
 protected:
  EngineWorkersTest() {
    for (auto& switches : switches_) switches = std::make_shared<RuleRunner::Switches>();
  }
  ~EngineWorkersTest() override {
    for (size_t i = 0; i < kPlaces; ++i) {
      Hold(i, false);
      MutexLock lock(switches_[i]->mutex);
      switches_[i]->hang = false;
      switches_[i]->changed.NotifyAll();
    }
    engine_.reset();
    EXPECT_EQ(Runners(), 0);
  }

  // `places`: devices, at most kPlaces.
  void Make(LlmEngine::Options options, int places, int workers) {
    const auto factory = [this](int device, LoadWatch&) {
      if (!refused_.ok()) throw LoadFailure(refused_);
      return std::make_unique<RuleRunner>(switches_[static_cast<size_t>(device)], 1000);
    };
    options.start_thread = threads_.start();
    engine_ = std::make_unique<LlmEngine>(options, RuleModel(places, factory), metrics_,
                                          LlmEngine::Places{.workers = workers});
  }
  void Start(LlmEngine::Options options, int places, int workers) {
    Make(options, places, workers);
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }
  std::shared_ptr<Collector> Ask(int32_t first) {
    auto sink = std::make_shared<Collector>();
    EXPECT_TRUE(engine_->Submit(RuleJob(first, 5, sink)).ok());
    return sink;
  }
  void Hold(size_t device, bool hold) {
    MutexLock lock(switches_[device]->mutex);
    switches_[device]->hold = hold;
    switches_[device]->changed.NotifyAll();
  }
  void SetDead(size_t device, bool dead) {
    MutexLock lock(switches_[device]->mutex);
    switches_[device]->dead = dead;
  }
  int Runners() {
    int alive = 0;
    for (const auto& switches : switches_) {
      MutexLock lock(switches->mutex);
      alive += switches->alive;
    }
    return alive;
  }
  bool Shows(const std::string& state, int workers) const {
    return metrics_.Render().find("llava_llm_workers{state=\"" + state + "\"} " +
                                  std::to_string(workers) + "\n") != std::string::npos;
  }

  static constexpr size_t kPlaces = 3;
  Metrics metrics_{"llm"};
  FewThreads threads_;
  absl::Status refused_;  // what makers of runners throw, unless it is OK
  std::array<std::shared_ptr<RuleRunner::Switches>, kPlaces> switches_;  // of each device
  std::unique_ptr<LlmEngine> engine_;
};

// Whenever a change of workers is stopped, those that are meant to be are there.
TEST_F(EngineWorkersTest, AChangeThatIsStoppedLosesNoWorker) {
  Start({}, 2, 2);
  const auto complete = [this] {
    const auto until = GenerateJob::Clock::now() + kSlowdown * std::chrono::seconds(10);
    while (engine_->weight_bytes() != 100u * static_cast<unsigned>(engine_->workers())) {
      if (GenerateJob::Clock::now() > until) return false;
      std::this_thread::yield();
    }
    return true;
  };
  for (int i = 0; i < 300; ++i) {
    engine_->SetWorkers(1, [] { return true; }).IgnoreError();
    ASSERT_TRUE(complete()) << i;
    ASSERT_TRUE(engine_->SetWorkers(2).ok());
    ASSERT_TRUE(complete()) << i;
  }
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_worker_respawns_total 0"));
}

TEST_F(EngineWorkersTest, AWorkerThatWasGivenUpAndReplacedHasNotFailed) {
  Start({.max_running = 1, .respawns = 0}, 2, 2);
  Hold(0, true);
  SetDead(1, true);
  const auto one = Ask(10), two = Ask(11);  // at least one of them by the second worker
  while (!Shows("failed", 1)) std::this_thread::yield();
  Hold(0, false);
  one->Wait().IgnoreError();
  two->Wait().IgnoreError();
  ASSERT_TRUE(engine_->SetWorkers(1).ok());
  EXPECT_TRUE(Shows("failed", 0)) << "nobody wants it any more";
  EXPECT_FALSE(engine_->SetWorkers(2).ok()) << "its device is still dead";
  EXPECT_TRUE(Shows("failed", 0));
  SetDead(1, false);
  ASSERT_TRUE(engine_->SetWorkers(2).ok());
  EXPECT_TRUE(Shows("failed", 0));
  EXPECT_TRUE(Shows("ready", 2));
}

// As after an illegal address: CUDA refuses every call of the process.
TEST_F(EngineWorkersTest, WhereTheDeviceIsLostNoWorkerBeginsAnewAgainAndAgain) {
  Start({.respawn_delay = std::chrono::milliseconds(1), .respawns = 1'000'000}, 1, 1);
  refused_ = absl::FailedPreconditionError("cannot use cuda:0: an illegal address");
  SetDead(0, true);
  EXPECT_EQ(Ask(10)->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return !engine_->failure().empty(); }));
  EXPECT_EQ(engine_->given_up(), refused_.message());
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_worker_respawns_total 1"));
}

TEST_F(EngineWorkersTest, ADeviceThatIsMissingIsToldAsItIs) {
  refused_ = absl::FailedPreconditionError("cannot use cuda:0: there is none");
  Make({}, 1, 1);
  EXPECT_EQ(engine_->WaitUntilReady(), refused_);
  EXPECT_EQ(engine_->given_up(), "");
}

TEST_F(EngineWorkersTest, AnEngineWithoutItsThreadsIsAnErrorAndLeavesNothingBehind) {
  for (int threads = 0; threads < 3; ++threads) {  // of two workers and who watches them
    threads_.Leave(threads);
    EXPECT_THROW(Make({}, 2, 2), std::system_error) << threads;
    EXPECT_EQ(Runners(), 0);
  }
  threads_.Leave(3);
  Start({}, 2, 2);
  EXPECT_TRUE(Ask(10)->Wait().ok());
}

TEST_F(EngineWorkersTest, WorkersThatFindNoThreadAreNotAdded) {
  Start({}, 3, 1);
  for (int threads = 0; threads < 2; ++threads) {
    threads_.Leave(threads);
    const absl::Status status = engine_->SetWorkers(3);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("thread of worker"));
    EXPECT_EQ(engine_->workers(), 1);
    EXPECT_TRUE(Shows("loading", 0));
    EXPECT_TRUE(Ask(10)->Wait().ok());
  }
  threads_.Leave(2);
  EXPECT_TRUE(engine_->SetWorkers(3).ok());
  EXPECT_TRUE(Shows("ready", 3));
}

TEST_F(EngineWorkersTest, AWorkerThatHangsIsGivenUpWhereThereIsNoThreadForItsPlace) {
  Start({.step_limit = kSlowdown * std::chrono::seconds(2)}, 1, 1);
  threads_.Leave(0);
  const auto stuck = Ask(RuleRunner::kHang), waiting = Ask(10);
  EXPECT_EQ(stuck->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting->Wait().code(), absl::StatusCode::kUnavailable);
  while (engine_->failure().empty()) std::this_thread::yield();
  EXPECT_THAT(engine_->failure(), HasSubstr("--step-limit"));
  EXPECT_THAT(engine_->failure(), HasSubstr("thread of worker 1"));
  EXPECT_TRUE(Shows("failed", 1));
  engine_->Stop();
}

TEST_F(EngineWorkersTest, AModelThatHangsWhileItIsLoadedIsNotReadyWithoutAThreadEither) {
  threads_.Leave(2);
  {
    MutexLock lock(switches_[0]->mutex);
    switches_[0]->hang_warm_up = true;
  }
  Make({.step_limit = kSlowdown * std::chrono::seconds(2)}, 1, 1);
  const absl::Status status = engine_->WaitUntilReady();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--step-limit"));
}

TEST(DisposalThreadsTest, WhatFindsNoThreadWaitsForOne) {
  const auto soon = [] { return CondVar::Clock::now() + std::chrono::milliseconds(1); };
  const auto far = [] { return CondVar::Clock::now() + kSlowdown * std::chrono::seconds(60); };
  FewThreads threads;
  std::atomic<int> done = 0;
  const auto own = std::this_thread::get_id();
  std::atomic<bool> here = false;
  const auto dispose = [&] {
    if (std::this_thread::get_id() == own) here = true;
    ++done;
  };
  std::optional<DisposalThreads> disposal(threads.start());
  threads.Leave(0);
  disposal->Post(dispose);
  EXPECT_FALSE(disposal->WaitUntilIdle(soon()));
  threads.Leave(2);
  disposal->Post(dispose);
  EXPECT_TRUE(disposal->WaitUntilIdle(far()));
  EXPECT_EQ(done, 2);
  threads.Leave(0);
  disposal->Post(dispose);
  EXPECT_EQ(done, 2);
  threads.Leave(1);
  EXPECT_TRUE(disposal->WaitUntilIdle(far()));
  EXPECT_EQ(done, 3);
  EXPECT_FALSE(here) << "who posts may be a thread of what goes";
  threads.Leave(0);
  disposal->Post(dispose);
  disposal.reset();
  EXPECT_EQ(done, 4);
}

}  // namespace
}  // namespace llava
