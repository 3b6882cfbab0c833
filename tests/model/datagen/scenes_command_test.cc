// The program itself: exit codes and what it says.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

extern char** environ;

namespace llava {
namespace {

namespace fs = std::filesystem;

class ScenesCommandTest : public testing::Test {
 protected:
  pid_t Start(std::vector<std::string> args) {
    args.insert(args.begin(), ProgramPath("llava-datagen"));
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
      posix_spawn_file_actions_addopen(&files, fd, log_.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                       0600);
    }
    fs::remove(log_);
    pid_t pid = 0;
    EXPECT_EQ(posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&files);
    return pid;
  }

  int Wait(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    said_ = ReadBytes(log_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  int Run(std::vector<std::string> args) { return Wait(Start(std::move(args))); }
  bool Said(const std::string& text) const { return said_.find(text) != std::string::npos; }

  const TempFolder folder_;
  const std::string log_ = folder_.At("log");
  const std::string out_ = folder_.At("out");
  std::string said_;
};

TEST_F(ScenesCommandTest, HelpsAndTellsItsVersion) {
  EXPECT_EQ(Run({"--help"}), 0);
  EXPECT_TRUE(Said("scenes"));
  EXPECT_EQ(Run({"scenes", "--help"}), 0);
  for (const char* flag : {"--out", "--count", "--seed", "--categories", "--objects", "--repeats",
                           "--positions", "--held-out", "--stage1", "--stage1-detail", "--stage2",
                           "--kinds", "--dialogues", "--no-pictures", "--overwrite"}) {
    EXPECT_TRUE(Said(flag)) << flag;
  }
  EXPECT_EQ(Run({"--version"}), 0);
  EXPECT_TRUE(Said("llava-datagen 0."));
}

TEST_F(ScenesCommandTest, WrongUseIsTwoAndOneLine) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"scenes"},
      {"paint"},
      {"scenes", "--out", out_, "--bogus"},
      {"scenes", "--out", out_, "--categories", "50"},
      {"scenes", "--out", out_, "--objects", "3-1"},
      {"scenes", "--out", out_, "--objects", "5"},
      {"scenes", "--out", out_, "--count", "0"},
      {"scenes", "--out", out_, "--repeats", "1.5"},
      {"scenes", "--out", out_, "--positions", "anywhere"},
      {"scenes", "--out", out_, "--stage1-detail"},
      {"scenes", "--out", out_, "--stage1", "--dialogues", "3"},
      {"scenes", "--out", out_, "--stage1", "--kinds", "detail"},
      {"scenes", "--out", out_, "--stage2", "--kinds", "detail,poems"},
      {"scenes", "--out", out_, "--stage2", "--kinds", ""},
      {"scenes", "--out", out_, "--stage2", "--kinds", "detail", "--dialogues", "3"},
      {"scenes", "--out", out_, "--held-out", "pairs", "--objects", "1"},
      {"scenes", "--out", out_, "--brief-questions", "/nowhere/list"},
  };
  for (const auto& args : wrong) {
    EXPECT_EQ(Run(args), 2) << said_;
    EXPECT_TRUE(said_.starts_with("llava-datagen: ")) << said_;
    EXPECT_EQ(said_.find('\n'), said_.size() - 1) << said_;
    EXPECT_FALSE(fs::exists(out_));
  }
}

TEST_F(ScenesCommandTest, WritesTheKindsThatAreNamed) {
  const std::vector<std::string> args = {"scenes", "--out",    out_,      "--count",
                                         "5",      "--stage2", "--kinds", "reasoning,detail"};
  EXPECT_EQ(Run(args), 0) << said_;
  const std::string records = ReadBytes(out_ + "/stage2.json");
  EXPECT_NE(records.find("\"detail-000000\""), std::string::npos);
  EXPECT_NE(records.find("\"reasoning-0000"), std::string::npos);
  EXPECT_EQ(records.find("conversation-"), std::string::npos);
}

TEST_F(ScenesCommandTest, DrawsNothingIfToldSo) {
  EXPECT_EQ(Run({"scenes", "--out", out_, "--count", "5", "--stage1", "--no-pictures"}), 0)
      << said_;
  EXPECT_FALSE(Said("drawing"));
  EXPECT_TRUE(fs::exists(out_ + "/stage1.json"));
  EXPECT_TRUE(fs::is_empty(out_ + "/images"));
}

TEST_F(ScenesCommandTest, RefusesAFullFolderUnlessToldToOverwrite) {
  const std::vector<std::string> args = {"scenes", "--out", out_, "--count", "5"};
  EXPECT_EQ(Run(args), 0) << said_;
  EXPECT_TRUE(Said("drawing 5/5"));
  EXPECT_EQ(Run(args), 2);
  EXPECT_TRUE(Said("--overwrite"));
  EXPECT_EQ(Run({"scenes", "--out", out_, "--count", "6", "--overwrite"}), 0) << said_;
  EXPECT_TRUE(fs::exists(out_ + "/images/000005.png"));
}

TEST_F(ScenesCommandTest, CtrlCIsTidyAndTheSameCommandGoesOn) {
  const std::vector<std::string> args = {"scenes", "--out",  out_, "--count",
                                         "20000",  "--jobs", "1"};
  const pid_t pid = Start(args);
  while (!fs::exists(out_ + "/images/000010.png")) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  kill(pid, SIGINT);
  EXPECT_EQ(Wait(pid), 130) << said_;
  EXPECT_TRUE(Said("stopped; the same command goes on"));
  for (const auto& entry : fs::recursive_directory_iterator(out_)) {
    EXPECT_NE(entry.path().extension(), ".part");
  }
  EXPECT_FALSE(fs::exists(out_ + "/dataset.json"));
  EXPECT_EQ(Run({"scenes", "--out", out_, "--count", "3"}), 2);  // not the same command
}

}  // namespace
}  // namespace llava
