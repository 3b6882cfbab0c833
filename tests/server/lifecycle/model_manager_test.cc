#include "server/lifecycle/model_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include "tests/server/lifecycle/model_manager_harness.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST_F(ModelManagerTest, ServesWhatIsPublished) {
  options_.load_bytes_per_second = 1'000'000;
  Start();
  EXPECT_TRUE(manager_->WaitUntilServing().ok()) << "a repository may be empty";
  repository_.Publish("emoji", 1);
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  EXPECT_THAT(loader_.routed(), ElementsAre(1));
  EXPECT_TRUE(Eventually([&] { return Serving("emoji") == 1; }));
  EXPECT_EQ(loader_.last_rate(), 1'000'000U);
  const v1::ModelVersionStatus status = Status(1);
  EXPECT_EQ(status.model().digest(), "digest");
  EXPECT_EQ(status.weight_bytes(), 1000U);
  EXPECT_EQ(status.load_progress(), 1);
  EXPECT_EQ(status.self_test_drift(), 0.25);
  EXPECT_GT(status.since().seconds(), 1'600'000'000);

  // An answer is under way while version 2 comes.
  auto held = loader_.Get(1);
  held->SetInFlight(1);
  repository_.Publish("emoji", 2);
  ASSERT_TRUE(Reaches(2, v1::MODEL_STATE_READY));
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_DRAINING));
  EXPECT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{2}; }));
  EXPECT_EQ(loader_.last_predecessor(), 1U);
  EXPECT_EQ(Status(1).in_flight(), 1U);
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(loader_.alive(), 2);
  held->SetInFlight(0);
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(Status(1).state(), v1::MODEL_STATE_DRAINING) << "somebody still holds it";
  held.reset();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_UNLOADED));
  EXPECT_EQ(loader_.alive(), 1);
  const auto models = manager_->List("");
  ASSERT_TRUE(models.ok());
  ASSERT_EQ(models->models_size(), 1);
  EXPECT_EQ(models->models(0).model().version(), 2U);
}

TEST_F(ModelManagerTest, ABrokenVersionSaysWhyAndIsRepaired) {
  repository_.Publish("emoji", 1);
  repository_.Publish("emoji", 2, "nonsense");
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY)) << "the older one stands in";
  ASSERT_TRUE(Eventually([&] { return Status(2).failed_loads() >= 2; })) << "it is tried again";
  EXPECT_TRUE(FailsSaying(2, "says nonsense"));
  EXPECT_THAT(loader_.routed(), ElementsAre(1));
  repository_.Delete("emoji", 2);
  repository_.Publish("emoji", 2);
  ASSERT_TRUE(Reaches(2, v1::MODEL_STATE_READY));
  EXPECT_EQ(Status(2).failed_loads(), 0U);
  EXPECT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{2}; }));
}

TEST_F(ModelManagerTest, TellsOnceThatTheFirstLoadsAreOver) {
  std::atomic<int> told = 0;
  options_.names = {};
  options_.load_threads = 2;
  options_.on_first_loads = [&] {
    EXPECT_EQ(Serving("big"), 1) << "what is served was told before";
    ++told;
  };
  repository_.Publish("big", 2);
  repository_.Publish("emoji", 1);
  loader_.HoldLoadsOf(2);
  Start();
  ASSERT_TRUE(Eventually([&] { return loader_.loads(2) == 1; }));
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY) &&
              Eventually([&] { return Serving("emoji") == 1; }));
  EXPECT_EQ(told, 0);
  loader_.HoldLoadsOf(0);
  ASSERT_TRUE(Eventually([&] { return told == 1; }));
  repository_.Publish("emoji", 3);
  ASSERT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{2, 3}; }));
  EXPECT_EQ(told, 1);
}

TEST_F(ModelManagerTest, LoadAnswersWhenItIsReadyOrHasFailed) {
  options_.policy = *VersionPolicy::Parse("labels");
  repository_.Publish("emoji", 1);
  repository_.Publish("emoji", 2, "nonsense");
  Start();
  const auto loaded = Wait(true, 1);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(loaded->model().version(), 1U);
  EXPECT_EQ(Wait(true, 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Wait(true, 9).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Wait(true, 1, "other").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Wait(true, 1, "").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Wait(true, 1).ok()) << "again";
  // Published this moment, whatever the watcher has seen.
  repository_.Publish("emoji", 3);
  EXPECT_TRUE(Wait(true, 3).ok());
  EXPECT_EQ(Wait(false, 0).status().code(), absl::StatusCode::kInvalidArgument)
      << "several are loaded";
  const auto unloaded = Wait(false, 1);
  ASSERT_TRUE(unloaded.ok()) << unloaded.status();
  EXPECT_EQ(unloaded->state(), v1::MODEL_STATE_UNLOADED);
  EXPECT_EQ(loader_.alive(), 1);
  EXPECT_TRUE(Wait(false, 0).ok());
  EXPECT_EQ(loader_.alive(), 0);
  EXPECT_EQ(Wait(false, 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Wait(true, 0).ok()) << "the newest";
  EXPECT_THAT(loader_.routed(), ElementsAre(3));
}

TEST_F(ModelManagerTest, ACallerMayGiveUp) {
  repository_.Publish("emoji", 1);
  loader_.CloseGate();
  Start();
  ASSERT_TRUE(Eventually([&] { return loader_.loads(1) == 1; }));
  std::atomic<bool> answered = false;
  const uint64_t call = manager_->Load("emoji", 1, [&](const auto&) { answered = true; });
  EXPECT_TRUE(manager_->Forget(call));
  EXPECT_FALSE(manager_->Forget(call));
  EXPECT_TRUE(Eventually([&] { return Status(1).load_progress() == 0.5; }));
  loader_.OpenGate();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY)) << "the load goes on";
  EXPECT_FALSE(answered);
}

TEST_F(ModelManagerTest, UnloadWaitsForAnswers) {
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  auto held = loader_.Get(1);
  std::thread ends([&] {
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_EQ(loader_.alive(), 1);
    held.reset();
  });
  EXPECT_TRUE(Wait(false, 1).ok());
  ends.join();
  EXPECT_EQ(loader_.alive(), 0);
  EXPECT_TRUE(Eventually([&] { return Serving("emoji") == 0; }));
}

TEST_F(ModelManagerTest, TheStartFailsWithTheReason) {
  options_.must_start = true;
  Start();
  EXPECT_EQ(manager_->WaitUntilServing().code(), absl::StatusCode::kNotFound);
  manager_.reset();

  repository_.Publish("emoji", 1, "nonsense");
  Start();
  const absl::Status broken = manager_->WaitUntilServing();
  EXPECT_EQ(broken.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(broken.message()), HasSubstr("says nonsense"));
  manager_.reset();

  repository_.Publish("emoji", 2, "huge");
  options_.memory_budget = 1000;
  Start();
  EXPECT_EQ(manager_->WaitUntilServing().code(), absl::StatusCode::kResourceExhausted);
  manager_.reset();

  repository_.Publish("emoji", 3);
  Start();
  EXPECT_TRUE(manager_->WaitUntilServing().ok());
  EXPECT_THAT(loader_.routed(), ElementsAre(3));
}

TEST_F(ModelManagerTest, AFixedFolderIsOneVersion) {
  repository_.Publish("emoji", 4);
  options_.root.clear();
  options_.names.clear();
  options_.fixed = VersionRef{"plain", 1, repository_.Folder("emoji", 4)};
  options_.must_start = true;
  Start();
  ASSERT_TRUE(manager_->WaitUntilServing().ok());
  EXPECT_THAT(loader_.routed(), ElementsAre(1));
  EXPECT_TRUE(manager_->Knows("plain"));
  EXPECT_FALSE(manager_->Knows("emoji"));
  EXPECT_EQ(Wait(true, 2, "plain").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Wait(false, 1, "plain").ok());
  EXPECT_TRUE(Wait(true, 0, "plain").ok());
}

TEST_F(ModelManagerTest, InPlaceWhenMemoryIsShort) {
  options_.memory_budget = 150;
  options_.retry_delay = seconds(60);  // each failure is counted once
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));

  // Other bytes than the manifest says: found before version 1 makes way.
  repository_.Publish("emoji", 2, "good", Manifest::Kind::kLanguage, "gooD");
  ASSERT_TRUE(FailsSaying(2, "SHA-256"));
  EXPECT_TRUE(Shows("{model=\"emoji\",result=\"data_loss\"} 1\n"));
  EXPECT_EQ(loader_.loads(2), 0);
  EXPECT_THAT(loader_.routed(), ElementsAre(1));
  EXPECT_EQ(loader_.loads(1), 1);

  // Broken in a way that only loading shows: version 1 comes back.
  repository_.Publish("emoji", 3, "late-broken");
  ASSERT_TRUE(Reaches(3, v1::MODEL_STATE_FAILED));
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  EXPECT_EQ(loader_.loads(1), 2);
  EXPECT_THAT(Status(3).message(), HasSubstr("not tried again"));

  repository_.Publish("emoji", 4);
  ASSERT_TRUE(Reaches(4, v1::MODEL_STATE_READY));
  EXPECT_TRUE(Eventually([&] { return loader_.alive() == 1; }));
  EXPECT_TRUE(Shows("llava_model_swap_seconds_count{mode=\"in_place\"} 1"));
}

TEST_F(ModelManagerTest, RollsOverSeveralWorkers) {
  FakeLoader loader(3);
  options_.memory_budget = 399;
  repository_.Publish("emoji", 1);
  ModelManager manager(options_, loader, metrics_);
  manager.Start();
  ASSERT_TRUE(Eventually([&] { return loader.routed() == std::vector<uint64_t>{1}; }));
  EXPECT_EQ(loader.Get(1)->workers(), 3);
  repository_.Publish("emoji", 2);
  ASSERT_TRUE(Eventually([&] {
    const auto now = loader.Get(2);
    return loader.routed() == std::vector<uint64_t>{2} && now && now->workers() == 3;
  }));
  EXPECT_TRUE(Eventually([&] { return loader.alive() == 1; }));
  manager.Stop();
  EXPECT_EQ(loader.alive(), 0);
}

TEST_F(ModelManagerTest, AVersionThatDiesIsLoadedAnew) {
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  loader_.Get(1)->Die("device lost");
  ASSERT_TRUE(Eventually([&] { return loader_.loads(1) == 2; }));
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  EXPECT_TRUE(Shows("llava_model_loads_total{model=\"emoji\",result=\"internal\"} 1"));
}

TEST_F(ModelManagerTest, AFolderThatIsGoneIsMissedWhileItsVersionIsServed) {
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  EXPECT_TRUE(Shows("llava_model_versions_without_folder 0\n"));
  repository_.Delete("emoji", 1);
  EXPECT_TRUE(Shows("llava_model_versions_without_folder 1\n"));
  EXPECT_THAT(loader_.routed(), ElementsAre(1));
  repository_.Publish("emoji", 1);
  EXPECT_TRUE(Shows("llava_model_versions_without_folder 0\n"));
}

TEST_F(ModelManagerTest, DeletedWhileItLoads) {
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  loader_.CloseGate();
  repository_.Publish("emoji", 2);
  ASSERT_TRUE(Eventually([&] { return loader_.loads(2) == 1; }));
  repository_.Delete("emoji", 2);
  loader_.OpenGate();
  v1::ModelVersionStatus ended;
  ASSERT_TRUE(Eventually([&] {
    ended = Status(2);
    return ended.state() == v1::MODEL_STATE_FAILED || ended.state() == v1::MODEL_STATE_UNLOADED;
  }));
  EXPECT_THAT(ended.message(), Not(IsEmpty()));
  EXPECT_THAT(loader_.routed(), ElementsAre(1));
}

TEST_F(ModelManagerTest, LabelsAreShownAndFollowed) {
  for (const uint64_t version : {1, 2, 3}) repository_.Publish("emoji", version);
  repository_.repository().SetLabel("emoji", "stable", 1);
  repository_.repository().SetLabel("emoji", "canary", 2);
  repository_.repository().SetLabel("emoji", "eu", 2);
  Start();
  ASSERT_TRUE(Reaches(2, v1::MODEL_STATE_READY));
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  EXPECT_EQ(Status(3).state(), v1::MODEL_STATE_AVAILABLE);
  std::map<uint64_t, std::vector<std::string>> labels;
  const auto models = manager_->List("emoji");
  ASSERT_TRUE(models.ok());
  for (const v1::ModelInfo& info : models->models()) {
    labels[info.model().version()] = {info.labels().begin(), info.labels().end()};
  }
  EXPECT_THAT(labels[1], ElementsAre("stable"));
  EXPECT_THAT(labels[2], ElementsAre("canary", "eu"));
  EXPECT_EQ(manager_->List("other").status().code(), absl::StatusCode::kNotFound);
  repository_.repository().SetLabel("emoji", "stable", 3);
  manager_->LookNow();
  ASSERT_TRUE(Reaches(3, v1::MODEL_STATE_READY));
  EXPECT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{2, 3}; }));
}

TEST_F(ModelManagerTest, StopsAtOnceWhileItLoadsAndAnswersEverybody) {
  repository_.Publish("emoji", 1);
  loader_.CloseGate();
  Start();
  ASSERT_TRUE(Eventually([&] { return loader_.loads(1) == 1; }));
  absl::Status answer;
  manager_->Load("emoji", 1, [&](const auto& result) { answer = result.status(); });
  manager_->Stop();  // although the gate stays closed
  EXPECT_EQ(answer.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Wait(true, 1).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ModelManagerTest, DrainingLoadsNothing) {
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  manager_->Drain();
  EXPECT_EQ(Status(1).state(), v1::MODEL_STATE_DRAINING);
  repository_.Publish("emoji", 2);
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(loader_.loads(2), 0);
  EXPECT_EQ(Wait(true, 2).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ModelManagerTest, AllModelsOfAKind) {
  options_.names.clear();
  options_.kind = Manifest::Kind::kLanguage;
  repository_.Publish("emoji", 1);
  repository_.Publish("tower", 7, "good", Manifest::Kind::kTower);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  repository_.Publish("second", 4);
  ASSERT_TRUE(Eventually([&] { return loader_.routed() == std::vector<uint64_t>{1, 4}; }));
  EXPECT_FALSE(manager_->Knows("tower"));
}

TEST_F(ModelManagerTest, MetricsTellIt) {
  repository_.Publish("emoji", 1);
  options_.memory_budget = 100'000;
  options_.retry_delay = seconds(60);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  repository_.Publish("emoji", 2);
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_UNLOADED));
  repository_.Publish("emoji", 3, "nonsense");
  ASSERT_TRUE(Reaches(3, v1::MODEL_STATE_FAILED));
  for (const char* line : {
           "llava_model_version_state{model=\"emoji\",state=\"unloaded\",version=\"1\"} 1\n",
           "llava_model_version_state{model=\"emoji\",state=\"ready\",version=\"2\"} 1\n",
           "llava_model_version_state{model=\"emoji\",state=\"failed\",version=\"3\"} 1\n",
           "llava_model_loads_total{model=\"emoji\",result=\"ok\"} 2\n",
           "llava_model_loads_total{model=\"emoji\",result=\"invalid_argument\"} 1\n",
           "llava_model_load_seconds_count 2\n",
           "llava_model_drain_seconds_count 1\n",
           "llava_model_swap_seconds_count{mode=\"side_by_side\"} 1\n",
           "llava_model_versions_serving{model=\"emoji\"} 1\n",
           "llava_model_memory_budget_bytes 100000\n",
           "llava_model_memory_estimated_bytes 100\n",
       }) {
    EXPECT_TRUE(Shows(line)) << line;
  }
  const std::string text = metrics_.Render();
  EXPECT_THAT(text, Not(HasSubstr("state=\"loading\""))) << "each version has one state";
  EXPECT_THAT(text, HasSubstr("llava_model_repository_looks_total"));
}

TEST_F(ModelManagerTest, AModelIsMissedAsLongAsItIsWanted) {
  const auto shows = [&](const std::string& model, const std::string& count) {
    return Eventually([&] {
      return metrics_.Render().find("llava_model_versions_serving{model=\"" + model + "\"} " +
                                    count + "\n") != std::string::npos;
    });
  };
  const auto shows_nothing = [&](const std::string& model) {
    return Eventually([&] {
      return metrics_.Render().find("versions_serving{model=\"" + model) == std::string::npos;
    });
  };
  options_.names = {"emoji", "broken"};
  repository_.Publish("emoji", 1);
  repository_.Publish("broken", 2, "nonsense");
  Start();
  EXPECT_TRUE(shows("emoji", "1"));
  EXPECT_TRUE(shows("broken", "0"));
  repository_.Delete("broken", 2);
  EXPECT_TRUE(shows_nothing("broken"));

  ASSERT_TRUE(Wait(false, 1).ok());
  EXPECT_TRUE(shows_nothing("emoji"));
  EXPECT_TRUE(Eventually([&] { return Serving("emoji") == 0; }));
  ASSERT_TRUE(Wait(true, 1).ok());
  EXPECT_TRUE(shows("emoji", "1"));
  EXPECT_TRUE(Eventually([&] { return Serving("emoji") == 1; }));
}

TEST_F(ModelManagerTest, ListsWhatIsToBeServedAndIsNotYet) {
  const auto listed = [this](const auto& models) {
    std::vector<uint64_t> versions;
    for (const v1::ModelInfo& info : models) versions.push_back(info.model().version());
    return versions;
  };
  using Versions = std::vector<uint64_t>;
  const auto lists = [&](const Versions& models, const Versions& coming) {
    return Eventually([&] {
      const auto list = manager_->List("emoji");
      return list.ok() && listed(list->models()) == models && listed(list->coming()) == coming;
    });
  };
  options_.policy = *VersionPolicy::Parse("latest:1");
  repository_.Publish("emoji", 1);
  repository_.repository().SetLabel("emoji", "stable", 1);
  loader_.CloseGate();
  Start();
  ASSERT_TRUE(lists({}, {1}));
  EXPECT_EQ(manager_->List("")->coming(0).labels(0), "stable");
  loader_.OpenGate();
  ASSERT_TRUE(lists({1}, {}));
  loader_.CloseGate();
  repository_.Publish("emoji", 2, "nonsense");
  ASSERT_TRUE(lists({1}, {2}));
  loader_.OpenGate();
  EXPECT_TRUE(lists({1}, {})) << "it fails again and again";
  repository_.Publish("emoji", 3);
  EXPECT_TRUE(lists({3}, {}));
  manager_->Stop();
  EXPECT_EQ(manager_->List("").status().code(), absl::StatusCode::kUnavailable)
      << "not an empty list: the next process has it again";
}

TEST_F(ModelManagerTest, ManyReadersWhileVersionsComeAndGo) {
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  std::atomic<bool> end = false;
  std::atomic<int> without = 0;
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!end) {
        EXPECT_TRUE(manager_->Statuses("", 0).ok());
        const auto models = manager_->List("emoji");
        if (!models.ok() || models->models().empty()) {
          ++without;
          continue;
        }
        // What is listed is routed, or has been replaced since.
        const uint64_t version = models->models().rbegin()->model().version();
        if (auto request = loader_.Get(version)) {
          request->SetInFlight(1);
          std::this_thread::yield();
          request->SetInFlight(0);
        }
      }
    });
  }
  for (uint64_t version = 2; version < 30; ++version) {
    repository_.Publish("emoji", version, version % 5 == 0 ? "nonsense" : "good");
    if (version % 7 == 0) repository_.Delete("emoji", version - 1);
    std::this_thread::sleep_for(milliseconds(10));
  }
  ASSERT_TRUE(Reaches(29, v1::MODEL_STATE_READY));
  end = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(without, 0) << "a version was always listed";
  EXPECT_TRUE(Eventually([&] { return loader_.alive() == 1; }));
}

}  // namespace
}  // namespace llava
