#include "model/text/utf8.h"

#include <gtest/gtest.h>

namespace llava {
namespace {

std::string Whole(std::string bytes) { return TakeWholeUtf8(bytes); }

TEST(Utf8Test, PassesWholeCharactersOn) {
  const std::string text = "aß漢🙂\xF4\x8F\xBF\xBF";
  EXPECT_EQ(Whole(text), text);
  EXPECT_EQ(ReadUtf8("🙂").value, U'🙂');
}

// The strings of Unicode's table 3-8 and the ones Python's decoder is tested with.
TEST(Utf8Test, ReplacesEveryLongestBrokenPartOnce) {
  EXPECT_EQ(Whole("a\xC0\xAF"
                  "b"),
            "a��b");
  EXPECT_EQ(Whole("\xED\xA0\x80."), "���.");
  EXPECT_EQ(Whole("\xF4\x91\x92\x93\xFF"
                  "A\x80\xBF"
                  "B"),
            "�����A��B");
  EXPECT_EQ(Whole("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                  "A"),
            "����A");
}

TEST(Utf8Test, KeepsWhatMayStillBecomeACharacter) {
  for (const std::string character : {"é", "漢", "🙂"}) {
    for (size_t cut = 1; cut < character.size(); ++cut) {
      std::string pending = "x" + character.substr(0, cut);
      EXPECT_EQ(TakeWholeUtf8(pending), "x");
      EXPECT_EQ(pending, character.substr(0, cut));
      pending += character.substr(cut);
      EXPECT_EQ(TakeWholeUtf8(pending), character);
      EXPECT_EQ(pending, "");
    }
  }
}

TEST(Utf8Test, CutsBetweenCharacters) {
  const std::string text = "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80z";  // 1, 2, 3, 4 and 1 bytes
  const size_t ends[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
  for (size_t most = 0; most < std::size(ends); ++most) {
    EXPECT_EQ(CutUtf8(text, most), text.substr(0, ends[most])) << most;
  }
  EXPECT_EQ(CutUtf8(std::string(9, '\x80'), 5), std::string(5, '\x80'));  // broken
  EXPECT_EQ(CutUtf8("", 0), "");
}

TEST(Utf8Test, StripsUnicodeWhiteSpace) {
  EXPECT_EQ(StripUtf8(" \t\n\xC2\xA0\xE3\x80\x80 a b\xE2\x80\xA8 \r"), "a b");
  EXPECT_EQ(StripUtf8Right(" a \n"), " a");
  EXPECT_EQ(StripUtf8(" \n "), "");
  EXPECT_EQ(StripUtf8("\xE2\x80\x8B"), "\xE2\x80\x8B");  // zero width space is none
  EXPECT_EQ(StripUtf8("\x80 "), "\x80");
}

}  // namespace
}  // namespace llava
