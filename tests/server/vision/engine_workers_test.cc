// Workers that load, die, begin anew, come and go.

#include "server/vision/engine.h"

#include <gmock/gmock.h>

#include <future>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/device/load_failure.h"
#include "server/vision/tower_loader.h"
#include "tests/server/vision/engine_harness.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(VisionEngineTest, TellsThatAWorkerLoads) {
  std::string during;
  on_load_ = [&] { during = metrics_.Render(); };
  Start({});
  EXPECT_THAT(during, HasSubstr("llava_vision_workers{state=\"loading\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"loading\"} 0"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"ready\"} 1"));
}

TEST_F(VisionEngineTest, AWorkerThatDiesBeginsAnew) {
  Start({.batch_wait = std::chrono::seconds(0),
         .respawn_delay = std::chrono::milliseconds(1),
         .respawns = 1000});
  Kill(true);
  EXPECT_EQ(Post(Picture("plain.png"))->Wait().code(), absl::StatusCode::kUnavailable);
  Kill(false);
  EXPECT_TRUE(Post(Picture("plain.png"))->Wait().ok());
  EXPECT_EQ(engine_->failure(), "");
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"ready\"} 1"));
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("llava_vision_worker_respawns_total 0")));
}

TEST_F(VisionEngineTest, ADeadDeviceFailsEverybodyAndSaysSo) {
  Start({.batch_wait = std::chrono::seconds(0),
         .respawn_delay = std::chrono::milliseconds(1),
         .respawns = 2});
  Kill(true);
  EXPECT_FALSE(Post(Picture("plain.png"))->Wait().ok());
  absl::Status refused;
  for (;;) {  // one at a time: a full queue refuses by another reason
    const auto call = Post(Picture("rgba.png"), -2, &refused);
    if (!refused.ok()) break;
    EXPECT_EQ(call->Wait().code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("device lost"));
  EXPECT_THAT(engine_->failure(), HasSubstr("device lost"));
  EXPECT_THAT(engine_->given_up(), HasSubstr("device lost"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"failed\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_worker_respawns_total 2"));
  engine_.reset();
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"failed\"} 0"));
}

// As after an illegal address: CUDA refuses every call of the process.
TEST_F(VisionEngineTest, WhereTheDeviceIsLostNoWorkerBeginsAnewAgainAndAgain) {
  absl::Status refused;
  on_load_ = [&] {
    if (!refused.ok()) throw LoadFailure(refused);
  };
  Start({.batch_wait = std::chrono::seconds(0),
         .respawn_delay = std::chrono::milliseconds(1),
         .respawns = 1'000'000});
  refused = absl::FailedPreconditionError("cannot use cuda:0: an illegal address");
  Kill(true);
  EXPECT_EQ(Post(Picture("plain.png"))->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return !engine_->failure().empty(); }));
  EXPECT_THAT(engine_->given_up(), HasSubstr("an illegal address"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_worker_respawns_total 1"));
  engine_.reset();
}

TEST_F(VisionEngineTest, AWorkerThatHangsIsToldAndItsPicturesEnd) {
  Start({.step_limit = std::chrono::milliseconds(20)});
  const auto fine = Post(Bitmap('a'));
  EXPECT_TRUE(fine->Wait().ok());
  EXPECT_EQ(engine_->FailHung(), "") << "it has ended";
  Hold(true);
  const auto hung = Post(Bitmap('b'));
  AwaitHeldBatch();
  const auto waits = Post(Bitmap('c'));
  std::string reason;
  while (reason.empty()) reason = engine_->FailHung();
  EXPECT_THAT(reason, HasSubstr("20 ms (--step-limit)"));
  const absl::Status status = hung->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("--step-limit"));
  EXPECT_NE(engine_->FailHung(), "") << "it still does";
  std::thread stopping([this] { EXPECT_FALSE(engine_->Stop()); });
  EXPECT_EQ(waits->Wait().code(), absl::StatusCode::kUnavailable);
  stopping.join();
  Hold(false);  // what comes of it now is nobody's any more
}

// The load of this number, from 1, takes until the gate is opened.
class LoadGate {
 public:
  explicit LoadGate(int hangs) : hangs_(hangs) {}
  void Load() {
    if (++loads_ == hangs_) opened_.wait();
  }
  void Open() { open_.set_value(); }

 private:
  const int hangs_;
  std::atomic<int> loads_ = 0;
  std::promise<void> open_;
  const std::shared_future<void> opened_ = open_.get_future().share();
};

TEST_F(VisionEngineTest, AWorkerThatHangsWhileItBeginsAnewIsToldAndNobodyWaitsForIt) {
  LoadGate gate(2);
  on_load_ = [&] { gate.Load(); };
  Start({.batch_wait = std::chrono::seconds(0),
         .respawn_delay = std::chrono::milliseconds(1),
         .load_limit = std::chrono::milliseconds(100)});
  EXPECT_EQ(engine_->FailHung(), "");
  Kill(true);
  EXPECT_EQ(Post(Bitmap('a'))->Wait().code(), absl::StatusCode::kUnavailable);
  Kill(false);
  const auto waits = Post(Bitmap('b'));
  std::string reason;
  while (reason.empty()) reason = engine_->FailHung();
  EXPECT_THAT(reason, HasSubstr("100 ms to read its weights"));
  EXPECT_EQ(waits->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(engine_->Stop());
  gate.Open();
  engine_.reset();
}

TEST_F(VisionEngineTest, StopWaitsForAWorkerThatBeginsAnew) {
  LoadGate gate(2);
  on_load_ = [&] { gate.Load(); };
  Start({.batch_wait = std::chrono::seconds(0), .respawn_delay = std::chrono::milliseconds(1)});
  Kill(true);
  EXPECT_EQ(Post(Bitmap('a'))->Wait().code(), absl::StatusCode::kUnavailable);
  std::thread opens([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    gate.Open();
  });
  EXPECT_TRUE(engine_->Stop());
  opens.join();
  engine_.reset();
}

TEST_F(VisionEngineTest, AnEngineThatHangsWhenItGoesIsStillSeen) {
  LoadGate gate(1);
  LoadedTower tower;
  tower.info.preprocess.image_size = 8;
  tower.info.num_layers = tower.info.num_patches = tower.info.width = 1;
  tower.factory = [&](int) {
    gate.Load();
    return std::make_unique<RuleEncoder>(switches_);
  };
  EngineReaper reaper;
  auto engine = reaper.Own(std::make_unique<VisionEngine>(
      VisionEngine::Options{.load_limit = std::chrono::milliseconds(1)}, std::move(tower), cache_,
      metrics_));
  EXPECT_EQ(engine->WaitUntilReady([] { return true; }).code(), absl::StatusCode::kCancelled);
  engine.reset();
  EXPECT_FALSE(reaper.Wait([] { return true; })) << "whoever waits for its memory can be stopped";
  std::string reason;
  const auto look = [&](VisionEngine& gone) { reason = gone.FailHung(); };
  while (reason.empty()) reaper.ForEach(look);
  bool ended = true;
  reaper.ForEach([&](VisionEngine& gone) { ended = gone.Stop(); });
  EXPECT_FALSE(ended);
  gate.Open();
  EXPECT_TRUE(reaper.Wait([] { return false; }));
  reaper.ForEach([](VisionEngine&) { ADD_FAILURE() << "it is freed"; });
}

TEST_F(VisionEngineTest, AWorkerThatCannotLoadIsAnError) {
  on_load_ = [] { throw std::bad_alloc(); };
  LoadedTower tower;
  tower.info.preprocess.image_size = 8;
  tower.factory = [this](int) {
    on_load_();
    return std::make_unique<RuleEncoder>(switches_);
  };
  VisionEngine engine({}, std::move(tower), cache_, metrics_);
  EXPECT_EQ(engine.WaitUntilReady().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(VisionEngineTest, ADeviceThatIsMissingIsToldAsItIs) {
  const auto missing = absl::FailedPreconditionError("cannot use cuda:0: there is none");
  LoadedTower tower;
  tower.info.preprocess.image_size = 8;
  tower.factory = [&](int) -> std::unique_ptr<PictureEncoder> { throw LoadFailure(missing); };
  VisionEngine engine({}, std::move(tower), cache_, metrics_);
  EXPECT_EQ(engine.WaitUntilReady(), missing);
}

TEST_F(VisionEngineTest, LoadingCanBeGivenUp) {
  std::promise<void> go_on;
  LoadedTower tower;
  tower.info.preprocess.image_size = 8;
  tower.info.num_layers = tower.info.num_patches = tower.info.width = 1;
  tower.factory = [&](int) {
    go_on.get_future().wait();
    return std::make_unique<RuleEncoder>(switches_);
  };
  VisionEngine engine({}, std::move(tower), cache_, metrics_);
  EXPECT_EQ(engine.WaitUntilReady([] { return true; }).code(), absl::StatusCode::kCancelled);
  go_on.set_value();
}

TEST_F(VisionEngineTest, WorkersCanBeGivenUpAndAdded) {
  const auto ready = [this](int count) {
    return HasSubstr("llava_vision_workers{state=\"ready\"} " + std::to_string(count));
  };
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0)}, /*workers=*/3,
        /*first_workers=*/1);
  EXPECT_EQ(engine_->workers(), 1);
  EXPECT_THAT(metrics_.Render(), ready(1));
  ASSERT_TRUE(engine_->SetWorkers(3, {}).ok());
  EXPECT_THAT(metrics_.Render(), ready(3));
  Hold(true);
  std::vector<std::shared_ptr<Collector>> calls;
  for (const char* name : {"plain.png", "rgba.png", "gray.png"}) {
    calls.push_back(Post(Picture(name)));
  }
  while (engine_->computing() < 3) std::this_thread::yield();  // all three at work
  std::thread shrink([this] { EXPECT_TRUE(engine_->SetWorkers(1, {}).ok()); });
  Hold(false);
  shrink.join();
  for (const auto& call : calls) EXPECT_TRUE(call->Wait().ok()) << "a batch under way ends";
  EXPECT_THAT(metrics_.Render(), ready(1));
  EXPECT_TRUE(Post(Picture("cmyk.jpg"))->Wait().ok());

  on_load_ = [] { throw std::runtime_error("no second device"); };
  EXPECT_EQ(engine_->SetWorkers(2, {}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(engine_->workers(), 1);
  EXPECT_TRUE(engine_->WaitUntilReady().ok()) << "the one that is left";
  EXPECT_TRUE(Post(Picture("palette.png"))->Wait().ok());
}

TEST_F(VisionEngineTest, AddingAWorkerCanBeStoppedThoughItHangs) {
  LoadGate gate(2);
  on_load_ = [&] { gate.Load(); };
  Start({}, /*workers=*/2, /*first_workers=*/1);
  EXPECT_EQ(engine_->SetWorkers(2, [] { return true; }).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(engine_->workers(), 1);
  EXPECT_EQ(engine_->SetWorkers(2, {}).code(), absl::StatusCode::kUnavailable) << "it still hangs";
  EXPECT_TRUE(Post(Bitmap('a'))->Wait().ok()) << "the other one serves";
  gate.Open();
  EXPECT_TRUE(Eventually([&] { return engine_->SetWorkers(2, {}).ok(); }));
  EXPECT_EQ(engine_->workers(), 2);
  engine_.reset();
}

}  // namespace
}  // namespace llava
