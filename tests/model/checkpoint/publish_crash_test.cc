// Publishing that is killed, or finds no room: nothing or a whole version is there afterwards.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/repository.h"
#include "tests/model/checkpoint/llava_model.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using testing::HasSubstr;

// llava-model publish in a process of its own.
class Publisher {
 public:
  struct Limit {
    rlim_t bytes;  // of a file
    bool kills;    // whoever writes more, at that very byte; else the write fails
  };
  explicit Publisher(const fs::path& root, std::optional<Limit> limit = std::nullopt) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
    child_ = fork();
    if (child_ < 0) throw std::runtime_error("fork");
    if (child_ == 0) {
      const int null = open("/dev/null", O_WRONLY);
      dup2(null, STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      if (limit) {
        signal(SIGXFSZ, limit->kills ? SIG_DFL : SIG_IGN);
        const rlimit most{limit->bytes, limit->bytes}, none{0, 0};
        setrlimit(RLIMIT_FSIZE, &most);
        setrlimit(RLIMIT_CORE, &none);
      }
      const std::string source = (FixturesDir() / "tiny-llava").string();
      execl(ProgramPath("llava-model").c_str(), "llava-model", "publish", source.c_str(),
            "--repository", root.c_str(), "--name", "m", "--no-self-test", nullptr);
      _exit(98);
    }
    close(ends[1]);
    error_ = ends[0];
  }
  ~Publisher() {
    if (child_ > 0) Kill();
    close(error_);
  }
  Publisher(const Publisher&) = delete;
  Publisher& operator=(const Publisher&) = delete;

  void Kill() {
    if (child_ > 0) kill(child_, SIGKILL);  // -1 would be everybody
    Wait();
  }
  bool Runs() {
    if (child_ > 0 && waitpid(child_, &status_, WNOHANG) == child_) child_ = -1;
    return child_ > 0;
  }
  // Exit code, or 1000 + the signal that ended it.
  int Wait() {
    if (child_ > 0) waitpid(child_, &status_, 0);
    child_ = -1;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : 1000 + WTERMSIG(status_);
  }
  std::string Error() const {
    std::string text;
    char buffer[4096];
    for (ssize_t size; (size = read(error_, buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(size));
    }
    return text;
  }

 private:
  pid_t child_;
  int status_ = 0, error_;
};

std::vector<fs::path> Drafts(const fs::path& root) {
  std::vector<fs::path> drafts;
  for (const char* name : {"m", "m-tower"}) {
    if (!fs::exists(root / name)) continue;
    for (const auto& entry : fs::directory_iterator(root / name)) {
      if (entry.path().filename().string().starts_with(".tmp-")) drafts.push_back(entry.path());
    }
  }
  return drafts;
}

// Opens all that readers see. Returns how many versions there are.
size_t CheckAll(const fs::path& root) {
  const ModelRepository repository(root);
  size_t count = 0;
  for (const std::string& name : repository.Models()) {
    for (const uint64_t version : repository.Versions(name)) {
      const fs::path folder = repository.Folder(name, version);
      ++count;
      if (Manifest::Read(folder).kind == Manifest::Kind::kTower) {
        EXPECT_NO_THROW(OpenTower(folder)) << folder;
      } else {
        EXPECT_NO_THROW(OpenLanguage(folder)) << folder;
      }
    }
  }
  return count;
}

void CollectDrafts(const fs::path& root) {
  const auto old = fs::file_time_type::clock::now() - std::chrono::hours(25);
  for (const fs::path& draft : Drafts(root)) {
    if (fs::is_directory(draft)) {
      for (const auto& entry : fs::directory_iterator(draft))
        fs::last_write_time(entry.path(), old);
    }
    fs::last_write_time(draft, old);
  }
  for (const char* name : {"m", "m-tower"}) {
    if (fs::exists(root / name)) ModelRepository(root).Gc(name, 1 << 20, /*dry_run=*/false);
  }
}

// How long a publisher writes, from its first draft to its end.
microseconds WritingTime(const fs::path& root) {
  Publisher publisher(root);
  while (publisher.Runs() && !fs::exists(root / "m-tower")) {
    std::this_thread::sleep_for(microseconds(200));
  }
  const auto begin = Clock::now();
  EXPECT_EQ(publisher.Wait(), 0) << publisher.Error();
  return std::chrono::duration_cast<microseconds>(Clock::now() - begin);
}

TEST(PublishCrashTest, KilledAtAnyMoment) {
  const TempFolder folder;
  microseconds window = [] {
    const TempFolder trial;
    return WritingTime(trial.path());
  }();
  std::mt19937_64 random(7);
  size_t killed = 0, left_drafts = 0;
  const auto enough = [&] { return killed >= 5 && left_drafts >= 1; };
  for (int round = 0; round < 20 || (round < 200 && !enough()); ++round) {
    const fs::path root = folder.path() / std::to_string(round);
    Publisher publisher(root);
    while (publisher.Runs() && !fs::exists(root / "m-tower")) {
      std::this_thread::sleep_for(microseconds(200));
    }
    std::this_thread::sleep_for(
        microseconds(std::uniform_int_distribution<int64_t>(0, window.count())(random)));
    // How fast it writes depends on what else the machine does: aim at where it writes now.
    const bool in_time = publisher.Runs();
    killed += in_time;
    window = in_time ? window * 3 / 2 : window / 2;
    publisher.Kill();
    left_drafts += !Drafts(root).empty();
    CheckAll(root);
    // The next one is not disturbed, and takes a number of its own.
    if (round % 5 == 0) {
      EXPECT_EQ(Publisher(root).Wait(), 0);
      EXPECT_GE(CheckAll(root), 2u);
    }
    CollectDrafts(root);
    EXPECT_TRUE(Drafts(root).empty());
    CheckAll(root);
  }
  EXPECT_TRUE(enough()) << killed << " killed, " << left_drafts << " left drafts";
}

TEST(PublishCrashTest, KilledAtGivenBytes) {
  for (const rlim_t bytes : {0, 1, 9, 600, 4096, 20000}) {
    const TempFolder root;
    Publisher publisher(root.path(), Publisher::Limit{bytes, /*kills=*/true});
    EXPECT_EQ(publisher.Wait(), 1000 + SIGXFSZ) << bytes << publisher.Error();
    EXPECT_FALSE(Drafts(root.path()).empty()) << bytes;
    CheckAll(root.path());
    EXPECT_THAT(ModelRepository(root.path()).Versions("m"), testing::IsEmpty());
  }
}

TEST(PublishCrashTest, WithoutRoomNothingIsLeft) {
  for (const rlim_t bytes : {1, 4096, 20000}) {
    const TempFolder root;
    Publisher publisher(root.path(), Publisher::Limit{bytes, /*kills=*/false});
    EXPECT_EQ(publisher.Wait(), 1);
    EXPECT_THAT(publisher.Error(),
                testing::AllOf(HasSubstr("/.tmp-"), HasSubstr(": cannot write: File too large")));
    EXPECT_TRUE(Drafts(root.path()).empty()) << bytes;
    EXPECT_THAT(ModelRepository(root.path()).Versions("m"), testing::IsEmpty());
  }
}

TEST(PublishCrashTest, OnAFullDisk) {
  const TempFolder folder;
  const fs::path root = folder.path() / "full";
  fs::create_directory(root);
  if (mount("tmpfs", root.c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "a file system cannot be mounted here";
  }
  {
    Publisher publisher(root);
    EXPECT_EQ(publisher.Wait(), 1);
    EXPECT_THAT(publisher.Error(), HasSubstr("No space left on device"));
    EXPECT_TRUE(fs::is_empty(root));
  }
  EXPECT_EQ(umount(root.c_str()), 0);
}

TEST(PublishCrashTest, EightAtOnce) {
  const TempFolder root;
  std::vector<std::unique_ptr<Publisher>> publishers;
  for (int i = 0; i < 8; ++i) publishers.push_back(std::make_unique<Publisher>(root.path()));
  for (const auto& publisher : publishers) EXPECT_EQ(publisher->Wait(), 0) << publisher->Error();
  EXPECT_THAT(ModelRepository(root.path()).Versions("m"),
              testing::ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  EXPECT_GE(CheckAll(root.path()), 9u);
  EXPECT_TRUE(Drafts(root.path()).empty());
}

}  // namespace
}  // namespace llava
