#include "model/progress/progress.h"

#include <gtest/gtest.h>

#include <cstdio>

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
