#include "server/lifecycle/repository_watcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>

#include "tests/server/lifecycle/test_repository.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::Not;

// Remembers what was seen last.
class Seen {
 public:
  void Look(uint64_t look, const absl::StatusOr<RepositorySnapshot>& snapshot) {
    MutexLock lock(mutex_);
    look_ = look;
    status_ = snapshot.status();
    if (snapshot.ok()) snapshot_ = *snapshot;
    changed_.NotifyAll();
  }
  bool Wait(const std::function<bool(const RepositorySnapshot&)>& condition) {
    return WaitFor([&] { return status_.ok() && look_ > 0 && condition(snapshot_); });
  }
  bool WaitForLook(uint64_t look) {
    return WaitFor([&] { return look_ >= look; });
  }
  bool WaitForError() {
    return WaitFor([&] { return !status_.ok(); });
  }
  uint64_t looks() {
    MutexLock lock(mutex_);
    return look_;
  }
  RepositorySnapshot snapshot() {
    MutexLock lock(mutex_);
    return snapshot_;
  }
  absl::Status status() {
    MutexLock lock(mutex_);
    return status_;
  }

 private:
  template <typename Condition>
  bool WaitFor(Condition condition) {
    const auto deadline = CondVar::Clock::now() + std::chrono::seconds(60 * kSlowdown);
    MutexLock lock(mutex_);
    while (!condition()) {
      if (!changed_.WaitUntil(mutex_, deadline)) return condition();
    }
    return true;
  }

  Mutex mutex_;
  CondVar changed_;
  uint64_t look_ = 0;
  absl::Status status_;
  RepositorySnapshot snapshot_;
};

bool HasVersion(const RepositorySnapshot& snapshot, const std::string& name, uint64_t version) {
  const auto model = snapshot.find(name);
  return model != snapshot.end() && model->second.versions.contains(version);
}

// How changes are noticed: by inotify alone, or by polling alone.
class RepositoryWatcherTest : public ::testing::TestWithParam<bool> {
 protected:
  RepositoryWatcher::Options Options() {
    RepositoryWatcher::Options options;
    options.root = repository_.root();
    options.inotify = GetParam();
    options.poll_interval = milliseconds(GetParam() ? 0 : 20);
    return options;
  }
  void Start(const RepositoryWatcher::Options& options) {
    watcher_ = std::make_unique<RepositoryWatcher>(
        options, metrics_, [this](uint64_t look, const absl::StatusOr<RepositorySnapshot>& found) {
          seen_.Look(look, found);
        });
    watcher_->Start();
    ASSERT_TRUE(seen_.WaitForLook(1));
  }
  void Start() { Start(Options()); }

  TestRepository repository_;
  Metrics metrics_{"test"};
  Seen seen_;
  std::unique_ptr<RepositoryWatcher> watcher_;
};

INSTANTIATE_TEST_SUITE_P(How, RepositoryWatcherTest, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "inotify" : "polling"; });

TEST_P(RepositoryWatcherTest, SeesVersionsComeAndGo) {
  repository_.Publish("emoji", 1);
  Start();
  EXPECT_THAT(seen_.snapshot(), ElementsAre(Key("emoji")));
  repository_.Publish("emoji", 2);
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return HasVersion(now, "emoji", 2); }));
  repository_.Publish("other", 7);
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return HasVersion(now, "other", 7); }));
  repository_.Delete("emoji", 1);
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return !HasVersion(now, "emoji", 1); }));
  EXPECT_TRUE(HasVersion(seen_.snapshot(), "emoji", 2));
}

TEST_P(RepositoryWatcherTest, SeesLabels) {
  repository_.Publish("emoji", 1);
  Start();
  repository_.repository().SetLabel("emoji", "stable", 1);
  EXPECT_TRUE(seen_.Wait([](const auto& now) {
    return now.at("emoji").marks.labels == std::map<std::string, uint64_t>{{"stable", 1}};
  }));
}

TEST_P(RepositoryWatcherTest, SeesRepairedFiles) {
  repository_.Publish("emoji", 1);
  Start();
  const std::string mark = seen_.snapshot().at("emoji").versions.at(1);
  TestRepository::Write(repository_.Folder("emoji", 1) / "weights", "repaired");
  EXPECT_TRUE(seen_.Wait([&](const auto& now) { return now.at("emoji").versions.at(1) != mark; }));
}

TEST_P(RepositoryWatcherTest, SeesAVersionThatIsCopiedFileByFile) {
  repository_.Publish("emoji", 1);
  Start();
  std::filesystem::create_directories(repository_.Folder("emoji", 2));
  TestRepository::Write(repository_.Folder("emoji", 2) / "weights", "good");
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_FALSE(HasVersion(seen_.snapshot(), "emoji", 2)) << "it has no manifest yet";
  std::filesystem::copy(repository_.Folder("emoji", 1) / "manifest.json",
                        repository_.Folder("emoji", 2));
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return HasVersion(now, "emoji", 2); }));
}

TEST_P(RepositoryWatcherTest, TheRootMayComeAndGo) {
  Start();
  EXPECT_THAT(seen_.snapshot(), IsEmpty());
  for (uint64_t version = 1; version <= 3; ++version) {
    repository_.Publish("emoji", version);  // makes the root
    ASSERT_TRUE(seen_.Wait([&](const auto& now) { return HasVersion(now, "emoji", version); }));
    std::filesystem::remove_all(repository_.root() / "emoji");
    ASSERT_TRUE(seen_.Wait([&](const auto& now) { return !HasVersion(now, "emoji", version); }));
    std::filesystem::remove_all(repository_.root());
    std::this_thread::sleep_for(milliseconds(50));
  }
}

TEST_P(RepositoryWatcherTest, OnlyTheModelsThatAreAskedFor) {
  repository_.Publish("emoji", 1);
  repository_.Publish("tower", 1, "good", Manifest::Kind::kTower);
  auto options = Options();
  options.kind = Manifest::Kind::kTower;
  Start(options);
  EXPECT_THAT(seen_.snapshot(), ElementsAre(Key("tower")));
  watcher_.reset();

  options = Options();
  options.names = {"emoji", "later"};
  Start(options);
  ASSERT_TRUE(seen_.Wait([](const auto& now) { return now.contains("emoji"); }));
  repository_.Publish("later", 4);
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return HasVersion(now, "later", 4); }));
  EXPECT_FALSE(seen_.snapshot().contains("tower"));
}

TEST_P(RepositoryWatcherTest, AnErrorIsNoEmptyRepository) {
  repository_.Publish("emoji", 1);
  Start();
  TestRepository::Write(repository_.root() / "emoji" / "labels.json", "{ broken");
  ASSERT_TRUE(seen_.WaitForError());
  EXPECT_THAT(std::string(seen_.status().message()), HasSubstr("labels.json"));
  EXPECT_TRUE(HasVersion(seen_.snapshot(), "emoji", 1));
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("llava_model_repository_failed_looks_total 0\n")));
  std::filesystem::remove(repository_.root() / "emoji" / "labels.json");
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return HasVersion(now, "emoji", 1); }));
}

TEST_P(RepositoryWatcherTest, AModelThatCannotBeReadStaysAndHoldsUpNoOther) {
  for (const char* name : {"broken", "fine", "hidden"}) repository_.Publish(name, 1);
  Start();
  const auto labels = repository_.root() / "broken" / "labels.json";
  TestRepository::Write(labels, "{ broken");
  const auto hidden = repository_.root() / "hidden";
  std::filesystem::permissions(hidden, std::filesystem::perms::none);
  repository_.Publish("broken", 2);
  repository_.Publish("fine", 2);
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return HasVersion(now, "fine", 2); }));
  EXPECT_TRUE(HasVersion(seen_.snapshot(), "broken", 1)) << "as it was seen last";
  EXPECT_TRUE(HasVersion(seen_.snapshot(), "hidden", 1));
  EXPECT_FALSE(HasVersion(seen_.snapshot(), "broken", 2)) << "its marks are not known";
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("llava_model_repository_failed_looks_total 0\n")));
  std::filesystem::permissions(hidden, std::filesystem::perms::owner_all);
  std::filesystem::remove(labels);
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return HasVersion(now, "broken", 2); }));
  // What is gone is gone, though another model cannot be read.
  TestRepository::Write(labels, "{ broken");
  std::filesystem::remove_all(repository_.root() / "fine");
  EXPECT_TRUE(seen_.Wait([](const auto& now) { return !now.contains("fine"); }));
  EXPECT_TRUE(HasVersion(seen_.snapshot(), "broken", 2));
}

TEST_P(RepositoryWatcherTest, LooksWhenAsked) {
  auto options = Options();
  options.inotify = false;
  options.poll_interval = std::chrono::hours(1);
  Start(options);
  repository_.Publish("emoji", 1);
  ASSERT_TRUE(seen_.WaitForLook(watcher_->LookNow()));
  EXPECT_TRUE(HasVersion(seen_.snapshot(), "emoji", 1));
}

TEST_P(RepositoryWatcherTest, StopsAtOnce) {
  auto options = Options();
  options.poll_interval = std::chrono::hours(1);
  Start(options);
  const auto begin = std::chrono::steady_clock::now();
  watcher_->Stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(2 * kSlowdown));
}

TEST(RepositoryWatcherAncestor, IsWatchedOnlyUntilTheRootIsThere) {
  TestRepository repository;
  Metrics metrics("test");
  Seen seen;
  RepositoryWatcher::Options options;
  options.root = repository.root();
  options.poll_interval = {};
  options.quiet = milliseconds(1);
  RepositoryWatcher watcher(options, metrics,
                            [&](uint64_t look, const auto& found) { seen.Look(look, found); });
  watcher.Start();
  ASSERT_TRUE(seen.WaitForLook(1));
  repository.Publish("emoji", 1);
  ASSERT_TRUE(seen.Wait([](const auto& now) { return HasVersion(now, "emoji", 1); }));
  ASSERT_TRUE(seen.WaitForLook(watcher.LookNow()));  // events of the publication are over
  ASSERT_TRUE(seen.WaitForLook(watcher.LookNow()));
  const uint64_t before = seen.looks();
  for (int i = 0; i < 20; ++i) {
    TestRepository::Write(repository.root().parent_path() / ("other" + std::to_string(i)), "x");
    std::this_thread::sleep_for(milliseconds(5));
  }
  ASSERT_TRUE(seen.WaitForLook(watcher.LookNow()));
  // One may still be of the publication.
  EXPECT_LE(seen.looks(), before + 2) << "what others write there is no event";
  EXPECT_THAT(metrics.Render(), Not(HasSubstr("trigger=\"poll\""))) << "nobody polls";
}

TEST(RepositoryWatcherBurst, IsOneLook) {
  TestRepository repository;
  repository.Publish("emoji", 1);
  Metrics metrics("test");
  Seen seen;
  RepositoryWatcher::Options options;
  options.root = repository.root();
  options.poll_interval = {};
  options.quiet = std::chrono::seconds(1);  // longer than the writer may be held up
  RepositoryWatcher watcher(options, metrics,
                            [&](uint64_t look, const auto& found) { seen.Look(look, found); });
  watcher.Start();
  ASSERT_TRUE(seen.WaitForLook(1));
  for (int i = 0; i < 200; ++i) {
    TestRepository::Write(repository.Folder("emoji", 1) / ("file" + std::to_string(i)), "x");
  }
  repository.Publish("emoji", 2);
  ASSERT_TRUE(seen.Wait([](const auto& now) { return HasVersion(now, "emoji", 2); }));
  EXPECT_LE(seen.looks(), 5U);
}

}  // namespace
}  // namespace llava
