#include "client/chat/utf8.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

TEST(IsUtf8, TakesWellFormedText) {
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_TRUE(IsUtf8("plain"));
  EXPECT_TRUE(IsUtf8("\u00e9 \u20ac \U0001F600 \uFFFF"));
}

TEST(IsUtf8, RefusesTheRest) {
  EXPECT_FALSE(IsUtf8("\xff"));
  EXPECT_FALSE(IsUtf8("\x80"));              // continuation first
  EXPECT_FALSE(IsUtf8("\xc3"));              // cut off
  EXPECT_FALSE(IsUtf8("\xe2\x82"));          // cut off
  EXPECT_FALSE(IsUtf8("\xc0\xaf"));          // overlong
  EXPECT_FALSE(IsUtf8("\xed\xa0\x80"));      // surrogate
  EXPECT_FALSE(IsUtf8("\xf4\x90\x80\x80"));  // above U+10FFFF
  EXPECT_FALSE(IsUtf8("ok \xe2\x28\xa1 not ok"));
}

TEST(WithoutControls, KeepsTextAndReplacesControls) {
  EXPECT_EQ(WithoutControls("a\tb\n\u00e9\u00a0"), "a\tb\n\u00e9\u00a0");
  EXPECT_EQ(WithoutControls("\x1b[2J\x07\x7f\u0085"), "\uFFFD[2J\uFFFD\uFFFD\uFFFD");
}

}  // namespace
}  // namespace llava
