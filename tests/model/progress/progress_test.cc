#include "model/progress/progress.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

namespace llava {
namespace {

TEST(ProgressTest, TellsShareRateAndTimeLeft) {
  EXPECT_EQ(ProgressText("drawing", 250, 1000, 2, false),
            "drawing 250/1000 (25 %) 125/s, 0:06 left");
  EXPECT_EQ(ProgressText("drawing", 10, 10010, 1, false),
            "drawing 10/10010 (0 %) 10/s, 16:40 left");
  EXPECT_EQ(ProgressText("drawing", 1000, 1000, 2, false), "drawing 1000/1000 (100 %) 500/s");
}

TEST(ProgressTest, DrawsABar) {
  EXPECT_EQ(ProgressText("x", 1, 2, 1, true),
            "x [############............] 1/2 (50 %) 1.0/s, 0:01 left");
}

TEST(ProgressTest, SurvivesNothingDoneAndNothingToDo) {
  EXPECT_EQ(ProgressText("x", 0, 10, 0, false), "x 0/10 (0 %) 0.0/s");
  EXPECT_EQ(ProgressText("x", 0, 0, 0, false), "x 0/0 (100 %) 0.0/s");
}

// What a terminal is shown by `act`.
template <typename Act>
std::string Shown(const Act& act) {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  EXPECT_GE(master, 0);
  EXPECT_EQ(grantpt(master), 0);
  EXPECT_EQ(unlockpt(master), 0);
  std::FILE* terminal = std::fopen(ptsname(master), "r+");
  EXPECT_NE(terminal, nullptr);
  if (terminal == nullptr) return "";
  act(terminal);
  std::fputs("end", terminal);
  std::fflush(terminal);
  std::string shown;
  char byte;
  while (!shown.ends_with("end") && read(master, &byte, 1) == 1) shown += byte;
  std::fclose(terminal);
  close(master);
  return shown;
}

TEST(ProgressTest, WhatIsSaidNextStandsBelowTheBar) {
  const std::string left = Shown([](std::FILE* terminal) {
    Progress progress(terminal, "asking", 10);
    std::this_thread::sleep_for(std::chrono::milliseconds(110));  // then it draws
    progress.Update(3);
  });
  EXPECT_TRUE(left.find("3/10") != left.npos && left.ends_with("\x1b[K\r\nend")) << left;
  const std::string finished = Shown([](std::FILE* terminal) {
    Progress progress(terminal, "asking", 10);
    progress.Finish(10);
  });
  EXPECT_TRUE(finished.ends_with("\x1b[K\r\nend")) << finished;
  EXPECT_EQ(finished.find('\n'), finished.size() - 4);
  EXPECT_EQ(Shown([](std::FILE* terminal) { Progress(terminal, "asking", 10); }), "end");
}

TEST(ProgressTest, LearnsWhatWasDoneBefore) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  {
    Progress progress(file, "asking", 10);
    progress.set_skipped(4);
    progress.Finish(7);
  }
  std::rewind(file);
  std::string read(200, '\0');
  read.resize(std::fread(read.data(), 1, read.size(), file));
  std::fclose(file);
  EXPECT_TRUE(read.starts_with("asking 3/6 (50 %) ")) << read;
}

TEST(ProgressTest, WritesPlainLinesWhereThereIsNoTerminal) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  Progress progress(file, "drawing", 100, 40);
  progress.Update(50);  // too early for a line
  progress.Finish(100);
  std::rewind(file);
  std::string read(200, '\0');
  read.resize(std::fread(read.data(), 1, read.size(), file));
  std::fclose(file);
  EXPECT_TRUE(read.starts_with("drawing 60/60 (100 %) ")) << read;
  EXPECT_EQ(read.find('\n'), read.size() - 1);
  EXPECT_EQ(read.find('\r'), std::string::npos);
}

}  // namespace
}  // namespace llava
