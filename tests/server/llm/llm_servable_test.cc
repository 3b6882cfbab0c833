// Versions beside each other, over a model made of rules.

#include "server/llm/llm_servable.h"

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "server/runtime/service_process.h"
#include "tests/server/llm/rule_runner.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class LlmServableTest : public ::testing::Test {
 protected:
  ~LlmServableTest() override {
    LetGo();  // else whoever takes the versions away would wait for ever
  }

  void Start(int devices = 1, int prewarm = 0) {
    LlmServableLoader::Options options;
    options.engine = engine_;
    options.language.device = device_;
    for (int i = 1; i < devices; ++i) options.language.device += "," + device_;
    options.prewarm = prewarm;
    options.engine.max_running = 8;
    options.open = [this, devices](const LanguageOptions&, const LoadPace& pace) {
      paces_.push_back(pace.in_background);
      return OpenRules(devices);
    };
    loader_ = std::make_unique<LlmServableLoader>(options, service_, store_, disposal_, metrics_);
  }

  absl::StatusOr<LoadedLanguage> OpenRules(int devices) {
    if (!open_status_.ok()) return open_status_;
    LoadedLanguage model = RuleModel(devices, [this](int device, LoadWatch& watch) {
      {
        MutexLock lock(switches_->mutex);
        loaded_on_.push_back(device);
      }
      while (loading_takes_long_ && !watch.stop) std::this_thread::yield();
      if (watch.stop) throw std::runtime_error("stopped");
      return std::make_unique<RuleRunner>(switches_, 1000);
    });
    model.info.device = device_;
    return model;
  }

  std::shared_ptr<LlmServable> Load(uint64_t version, ServableLoader::LoadOptions options = {}) {
    auto servable = loader_->Load({"rules", version, "/nowhere"}, options);
    EXPECT_TRUE(servable.ok()) << servable.status();
    return std::static_pointer_cast<LlmServable>(*servable);
  }
  static ServableLoader::LoadOptions On(int workers) {
    ServableLoader::LoadOptions options;
    options.workers = workers;
    return options;
  }
  // Runs one answer of `tokens` tokens to its end.
  std::shared_ptr<Collector> Run(LlmServable& servable, int32_t first, int64_t prompt = 5) {
    auto sink = std::make_shared<Collector>();
    EXPECT_TRUE(servable.engine().Submit(RuleJob(first, 3, sink, prompt)).ok());
    sink->status = sink->Wait();
    return sink;
  }
  void Hold(bool hold) {
    MutexLock lock(switches_->mutex);
    switches_->hold = hold;
    switches_->changed.NotifyAll();
  }
  void StepsTake(std::chrono::microseconds time) {
    MutexLock lock(switches_->mutex);
    switches_->step_time = time;
  }
  void LetGo() {
    MutexLock lock(switches_->mutex);
    switches_->hang = false;
    switches_->changed.NotifyAll();
  }
  void SetDead(bool dead) {
    MutexLock lock(switches_->mutex);
    switches_->dead = dead;
  }
  int Alive() {
    MutexLock lock(switches_->mutex);
    return switches_->alive;
  }
  int Holding() {
    MutexLock lock(switches_->mutex);
    return switches_->holding;
  }
  void WaitForHolding(int runners) {
    const auto end = std::chrono::steady_clock::now() + kSlowdown * std::chrono::seconds(60);
    while (Holding() != runners && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    EXPECT_EQ(Holding(), runners);
  }
  void WaitForAlive(int runners) {
    const auto end = std::chrono::steady_clock::now() + kSlowdown * std::chrono::seconds(60);
    while (Alive() != runners && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    EXPECT_EQ(Alive(), runners);
  }

  Metrics metrics_{"llm"};
  Admission admission_;
  FeatureStore store_{1 << 20, std::chrono::seconds(30), metrics_};
  std::shared_ptr<RuleRunner::Switches> switches_ = std::make_shared<RuleRunner::Switches>();
  std::vector<bool> paces_;  // whether loads stood back
  std::vector<int> loaded_on_;
  absl::Status open_status_;
  std::atomic<bool> loading_takes_long_ = false;
  LlmEngine::Options engine_;
  std::string device_ = "cpu";
  DisposalThreads disposal_;
  LlmService service_{{}, store_, admission_, metrics_};
  std::unique_ptr<LlmServableLoader> loader_;
};

TEST_F(LlmServableTest, ALastRequestFreesItsVersionOnNoThreadOfIts) {
  Start();
  std::shared_ptr<LlmServable> first = Load(1);
  loader_->Route(first);
  // What a stream does: it holds the version, and ends on a thread of the engine.
  struct Holder : Collector {
    std::shared_ptr<const LlmBackend> backend;
    void Finished(const AnswerSummary& summary) override {
      Collector::Finished(summary);
      backend.reset();
    }
  };
  const auto holder = std::make_shared<Holder>();
  holder->backend = std::shared_ptr<const LlmBackend>(first, &first->backend());
  StepsTake(std::chrono::milliseconds(50));  // half a minute in all, unless told otherwise
  ASSERT_TRUE(first->engine().Submit(RuleJob(10, 600, holder)).ok());

  std::shared_ptr<LlmServable> second = Load(2);
  loader_->Route(second);
  loader_->Unroute("rules", 1);
  EXPECT_EQ(Alive(), 2);
  EXPECT_THAT(metrics_.Render(), HasSubstr("version=\"1\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"ready\"} 2"));
  const std::weak_ptr<LlmServable> gone = first;
  first.reset();
  EXPECT_FALSE(gone.expired()) << "an answer still needs it";
  EXPECT_LT(holder->count, 600u);
  StepsTake(std::chrono::milliseconds(0));
  EXPECT_TRUE(holder->Wait().ok());
  EXPECT_EQ(holder->ids.size(), 600u);
  WaitForAlive(1);
  EXPECT_TRUE(gone.expired());
  disposal_.WaitUntilIdle(CondVar::Clock::now() + kSlowdown * std::chrono::seconds(60));
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("version=\"1\"}")));
  EXPECT_THAT(metrics_.Render(), HasSubstr("version=\"2\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_workers{state=\"ready\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_llm_requests_waiting 0"));
  EXPECT_TRUE(Run(*second, 11)->status.ok());
}

TEST_F(LlmServableTest, AVersionThatHangsHoldsUpNoOther) {
  engine_.step_limit = kSlowdown * std::chrono::milliseconds(4000);
  engine_.respawn_delay = std::chrono::milliseconds(1);
  Start();
  std::shared_ptr<LlmServable> first = Load(1);
  EXPECT_EQ(Run(*first, RuleRunner::kHang)->status.code(), absl::StatusCode::kUnavailable);
  const std::weak_ptr<const void> hung = first->memory();
  first.reset();
  for (const uint64_t version : {2, 3}) {
    std::shared_ptr<LlmServable> next = Load(version);
    EXPECT_TRUE(Run(*next, 10)->status.ok());
    const std::weak_ptr<const void> memory = next->memory();
    next.reset();
    EXPECT_TRUE(Eventually([&] { return memory.expired(); })) << "version " << version;
  }
  WaitForAlive(1);
  EXPECT_FALSE(hung.expired()) << "a thread of the first one still has its weights";
  EXPECT_FALSE(disposal_.WaitUntilIdle(CondVar::Clock::now()));
  LetGo();
  EXPECT_TRUE(Eventually([&] { return hung.expired(); }));
  EXPECT_EQ(Alive(), 0);
}

TEST_F(LlmServableTest, ALoadWhoseWarmUpHangsGivesItsThreadBack) {
  engine_.step_limit = kSlowdown * std::chrono::milliseconds(1000);
  Start();
  {
    MutexLock lock(switches_->mutex);
    switches_->hang_warm_up = true;
  }
  const auto hung = loader_->Load({"rules", 1, "/nowhere"}, {});
  EXPECT_THAT(std::string(hung.status().message()), HasSubstr("--step-limit"));
  EXPECT_EQ(Alive(), 1);
  LetGo();
  WaitForAlive(0);
}

TEST_F(LlmServableTest, AGpuWhoseWorkerIsGivenUpIsLostToTheProcess) {
  engine_.respawn_delay = std::chrono::milliseconds(1);
  engine_.respawns = 1;
  for (const char* const device : {"cpu", "cuda:0"}) {
    device_ = device;
    Start();
    const auto servable = Load(1);
    EXPECT_EQ(loader_->device_lost(), "");
    SetDead(true);
    EXPECT_EQ(Run(*servable, 10)->status.code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(Eventually([&] { return !servable->load().failure.empty(); }));
    EXPECT_EQ(loader_->device_lost(), device_ == "cpu" ? "" : "device lost");
    SetDead(false);
  }
}

TEST_F(LlmServableTest, AGpuOnWhichALoadHangsIsLostToTheProcess) {
  engine_.step_limit = kSlowdown * std::chrono::seconds(2);
  for (const char* const device : {"cpu", "cuda:0"}) {
    device_ = device;
    Start();
    const auto serves = Load(1);
    {
      MutexLock lock(switches_->mutex);
      switches_->hang = switches_->hang_warm_up = true;
    }
    const absl::Status hung = loader_->Load({"rules", 2, "/nowhere"}, {}).status();
    EXPECT_THAT(std::string(hung.message()), HasSubstr("--step-limit"));
    EXPECT_EQ(loader_->device_lost(), device_ == "cpu" ? "" : hung.message());
    LetGo();
    EXPECT_TRUE(
        disposal_.WaitUntilIdle(CondVar::Clock::now() + kSlowdown * std::chrono::minutes(1)));
  }
}

TEST_F(LlmServableTest, AGpuThatWorkedAndDoesNotAnyMoreIsLost) {
  device_ = "cuda:0";
  Start();
  const auto fails = [&] {
    open_status_ = absl::FailedPreconditionError("cannot use cuda:0: an illegal address");
    EXPECT_EQ(loader_->Load({"rules", 9, "/nowhere"}, {}).status(), open_status_);
    open_status_ = absl::OkStatus();
  };
  fails();
  EXPECT_EQ(loader_->device_lost(), "") << "it never worked: a new process would help nobody";
  Load(1);
  EXPECT_EQ(loader_->device_lost(), "");
  fails();
  EXPECT_THAT(loader_->device_lost(), HasSubstr("illegal address"));
}

TEST_F(LlmServableTest, OnlyTheFirstLoadTakesTheProcessorsForItself) {
  Start();
  const auto first = Load(1);
  const auto second = Load(2);
  EXPECT_THAT(paces_, ElementsAre(false, true));
  EXPECT_EQ(first->load().failure, "");
}

TEST_F(LlmServableTest, AStoppedLoadEndsSoonAndLeavesNothing) {
  Start();
  loading_takes_long_ = true;
  std::atomic<int> asked = 0;
  ServableLoader::LoadOptions options;
  options.stop = [&] { return ++asked > 3; };
  const auto stopped = loader_->Load({"rules", 1, "/nowhere"}, options);
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Alive(), 0);
  loading_takes_long_ = false;
  EXPECT_TRUE(Run(*Load(1), 10)->status.ok());
}

TEST_F(LlmServableTest, FailuresAreToldAndTheOtherVersionServesOn) {
  Start();
  const auto first = Load(1);
  open_status_ = absl::DataLossError("a shard is too short");
  EXPECT_EQ(loader_->Load({"rules", 2, "/nowhere"}, {}).status(), open_status_);
  EXPECT_TRUE(Run(*first, 10)->status.ok());
  EXPECT_EQ(Run(*first, RuleRunner::kNan)->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(first->load().nan_outputs, 1u);
  EXPECT_EQ(first->load().in_flight, 0u);
}

TEST_F(LlmServableTest, TheDriftOfTheSelfTestIsKept) {
  Start();
  EXPECT_LT(Load(1)->self_test_drift(), 0);
  {
    MutexLock lock(switches_->mutex);
    switches_->drift = 0.25;
  }
  EXPECT_EQ(Load(2)->self_test_drift(), 0.25);
}

TEST_F(LlmServableTest, WorkersGoOneByOneFromVersionToVersion) {
  Start(3);
  const auto first = Load(1);
  EXPECT_EQ(first->workers(), 3);
  // Answers on all workers; the one that is given up ends its own first.
  Hold(true);
  std::vector<std::shared_ptr<Collector>> sinks;
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(first->engine().Submit(RuleJob(10 + i, 30, sinks.back())).ok());
    WaitForHolding(i + 1);  // so that the next one gets another worker
  }
  EXPECT_EQ(first->SetWorkers(2, [] { return true; }).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(first->workers(), 3);
  Hold(false);
  ASSERT_TRUE(first->SetWorkers(2, {}).ok());
  WaitForAlive(2);
  for (const auto& sink : sinks) EXPECT_TRUE(sink->Wait().ok());
  {
    MutexLock lock(switches_->mutex);
    loaded_on_.clear();
  }
  const auto second = Load(2, On(1));
  EXPECT_EQ(second->workers(), 1);
  ASSERT_TRUE(first->SetWorkers(1, {}).ok());
  ASSERT_TRUE(second->SetWorkers(2, {}).ok());
  {
    MutexLock lock(switches_->mutex);
    EXPECT_EQ(loaded_on_.at(0), 2) << "the device that was given up";
    EXPECT_EQ(std::set<int>(loaded_on_.begin(), loaded_on_.end()).size(), 2u);
  }
  EXPECT_TRUE(Run(*first, 20)->status.ok());
  EXPECT_TRUE(Run(*second, 20)->status.ok());
  EXPECT_EQ(second->SetWorkers(4, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(second->SetWorkers(0, {}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(LlmServableTest, AWorkerThatCannotBeAddedIsNotMissed) {
  Start(2);
  const auto servable = Load(1, On(1));
  loading_takes_long_ = true;
  std::atomic<int> asked = 0;
  EXPECT_EQ(servable->SetWorkers(2, [&] { return ++asked > 3; }).code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(servable->workers(), 1);
  EXPECT_TRUE(Run(*servable, 10)->status.ok());
  loading_takes_long_ = false;
  EXPECT_TRUE(servable->SetWorkers(2, {}).ok());
  EXPECT_EQ(Alive(), 2);
}

// Two versions that stream side by side on one device: neither waits until the other has ended.
TEST_F(LlmServableTest, VersionsOnOneDeviceTakeTurns) {
  Start();
  const std::shared_ptr<LlmServable> versions[] = {Load(1), Load(2)};
  StepsTake(std::chrono::microseconds(500));
  for (const int busy : {0, 1}) {
    // Ten seconds of steps, eight answers at a time, and one answer of the other version.
    std::vector<std::shared_ptr<Collector>> stream;
    for (int i = 0; i < 250; ++i) {
      stream.push_back(std::make_shared<Collector>());
      ASSERT_TRUE(versions[busy]->engine().Submit(RuleJob(10, 690, stream.back())).ok());
    }
    while (stream[0]->count == 0) std::this_thread::yield();
    const auto other = std::make_shared<Collector>();
    ASSERT_TRUE(versions[1 - busy]->engine().Submit(RuleJob(10, 200, other)).ok());
    EXPECT_TRUE(other->Wait().ok());
    EXPECT_EQ(other->ids.size(), 200u);
    EXPECT_GT(versions[busy]->engine().running(), 0) << "it got its turns";
    for (const auto& each : stream) each->Go();
    for (const auto& each : stream) (void)each->Wait();
  }
}

TEST_F(LlmServableTest, PromptsComputedAheadAreFoundByTheirRequests) {
  Start();
  const auto servable = Load(1);
  const auto computed = [&] {
    MutexLock lock(switches_->mutex);
    EXPECT_EQ(switches_->foreign_rows, 0);
    return switches_->computed_rows;
  };
  std::vector<WarmPrompt> prompts(2);
  prompts[0].ids.assign(50, 10);
  prompts[1].ids.assign(20'000, 11);  // more than there is room for
  const auto late = LlmEngine::Clock::now() + kSlowdown * std::chrono::minutes(5);
  servable->engine().Prewarm(prompts, late);
  EXPECT_EQ(computed(), 50);
  EXPECT_EQ(Run(*servable, 10, 60)->cached, 50);
  EXPECT_EQ(Run(*servable, 11, 60)->cached, 0);
  // What takes too long is left where it is.
  StepsTake(std::chrono::milliseconds(20));  // of 16 rows
  prompts.resize(1);
  prompts[0].ids.assign(10'000, 12);
  const int64_t before = computed();
  servable->engine().Prewarm(prompts, late, [&] { return computed() != before; });
  const int64_t some = computed();
  EXPECT_GT(some, before);
  servable->engine().Prewarm(prompts, LlmEngine::Clock::now());  // its time has passed
  StepsTake(std::chrono::milliseconds(0));
  const int64_t found = Run(*servable, 12, 9000)->cached;
  EXPECT_GE(found, some - before);
  EXPECT_LT(found, 8999);
}

TEST(RecentSessionsTest, ForgetsSessionsWithAPictureThatIsDropped) {
  RecentSessions recent(9);
  v1::GenerateRequest request;
  for (const char* id : {"a", "b"}) {
    request.set_session_id(id);
    request.add_messages()->add_images()->set_image_sha256(std::string(32, id[0]));
    recent.Note(request, {});
  }
  recent.Forget({}, {std::string(32, 'x')});
  EXPECT_EQ(recent.List().size(), 2u);
  recent.Forget({}, {std::string(32, 'b')});
  ASSERT_EQ(recent.List().size(), 1u);
  EXPECT_EQ(recent.List()[0].id, "a");
  recent.Forget({}, {std::string(32, 'a')});
  EXPECT_TRUE(recent.List().empty());
}

TEST(RecentSessionsTest, KeepsTheLatestTurnOfTheLatestSessions) {
  RecentSessions recent(2);
  v1::GenerateRequest request;
  v1::TokenIds answer;
  const auto note = [&](const std::string& session, int32_t id) {
    request.set_session_id(session);
    answer.clear_ids();
    answer.add_ids(id);
    recent.Note(request, answer);
  };
  note("", 1);
  EXPECT_TRUE(recent.List().empty());
  note("a", 2);
  note("b", 3);
  note("a", 4);
  note("c", 5);
  const auto list = recent.List();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].id, "c");
  EXPECT_EQ(list[1].id, "a");
  EXPECT_EQ(list[1].answer.ids(0), 4);
  recent.Forget({"b", "c"}, {});
  ASSERT_EQ(recent.List().size(), 1u);
  EXPECT_EQ(recent.List()[0].id, "a");
  RecentSessions none(0);
  none.Note(request, answer);
  EXPECT_TRUE(none.List().empty());
}

}  // namespace
}  // namespace llava
