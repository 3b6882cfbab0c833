#include "model/text/piece_table.h"

#include <map>
#include <random>
#include <string>

#include <gtest/gtest.h>

namespace llava {
namespace {

TEST(PieceTableTest, AgreesWithAMap) {
  PieceTable table;
  EXPECT_EQ(table.Find("a"), kNoPiece);
  std::mt19937 random(1);
  auto word = [&random] {  // of few letters, NUL among them, around the eight bytes of a hash step
    std::string text;
    for (size_t n = random() % 20; n > 0; --n) text += static_cast<char>("a\0\xFF"[random() % 3]);
    return text;
  };
  std::map<std::string, int32_t> map;  // owns the texts
  for (int i = 0; i < 5000; ++i) {
    const auto [it, is_new] = map.emplace(word(), i);
    EXPECT_EQ(table.Insert(it->first, i), is_new);
  }
  for (int i = 0; i < 20000; ++i) {
    const std::string text = word();
    const auto it = map.find(text);
    ASSERT_EQ(table.Find(text), it == map.end() ? kNoPiece : it->second);
  }
}

}  // namespace
}  // namespace llava
