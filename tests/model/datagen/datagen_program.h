#pragma once

// llava-datagen as a process, with a folder of its own.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

extern char** environ;

namespace llava {

class DatagenProgram : public testing::Test {
 protected:
  // `before`: a shell command that replaces itself with the program, as "ulimit -f 1; exec".
  pid_t Start(std::vector<std::string> args, const std::string& before = "exec") {
    std::vector<std::string> all = {"/bin/sh", "-c", before + " \"$0\" \"$@\"",
                                    ProgramPath("llava-datagen")};
    all.insert(all.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& arg : all) argv.push_back(arg.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    const std::string outputs[] = {out_log_, log_};
    for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
      const auto& path = outputs[fd - STDOUT_FILENO];
      posix_spawn_file_actions_addopen(&files, fd, path.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                       0600);
    }
    pid_t pid = 0;
    EXPECT_EQ(posix_spawn(&pid, "/bin/sh", &files, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&files);
    return pid;
  }

  // The exit code, or minus the signal that ended it.
  int Wait(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    said_ = ReadBytes(log_);
    printed_ = ReadBytes(out_log_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  int Run(std::vector<std::string> args, const std::string& before = "exec") {
    return Wait(Start(std::move(args), before));
  }

  static nlohmann::json ReadJson(const std::filesystem::path& path) {
    return nlohmann::json::parse(ReadBytes(path));
  }
  void Write(const std::string& name, const std::string& text) const { folder_.Write(name, text); }

  const TempFolder folder_;
  const std::string log_ = folder_.At("log"), out_log_ = folder_.At("out_log");
  const std::string out_ = folder_.At("out");
  std::string said_, printed_;  // stderr, stdout
};

}  // namespace llava
