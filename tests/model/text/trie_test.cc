#include "model/text/trie.h"

#include <map>
#include <random>
#include <string>

#include <gtest/gtest.h>

namespace llava {
namespace {

TEST(TrieTest, AnEmptyOneFindsNothing) {
  EXPECT_TRUE(Trie().empty());
  EXPECT_TRUE(Trie(Trie::Entries{}).empty());
  EXPECT_EQ(Trie().Longest("a").length, 0u);
  EXPECT_EQ(Trie(Trie::Entries{{"a", 3}}).Longest("").length, 0u);
}

TEST(TrieTest, FindsAllPrefixesShortestFirst) {
  const Trie trie(Trie::Entries{{"a", 1}, {"abc", 2}, {"b", 3}, {"ab\xFF", 4}});
  std::string found;
  trie.VisitPrefixes("abcd", [&](size_t length, int32_t value) {
    found += std::to_string(length) + ":" + std::to_string(value) + " ";
  });
  EXPECT_EQ(found, "1:1 3:2 ");
  EXPECT_EQ(trie.Longest("ab\xFF").value, 4);
  EXPECT_EQ(trie.Longest("ab").value, 1);
}

TEST(TrieTest, AgreesWithAMapOnRandomKeys) {
  std::mt19937 random(1);
  auto word = [&random] {
    std::string text;
    for (size_t n = 1 + random() % 6; n > 0; --n)
      text += static_cast<char>("ab\x00\xFF\x80"[random() % 5]);
    return text;
  };
  std::map<std::string, int32_t> keys;
  for (int i = 0; i < 300; ++i) keys.emplace(word(), i);
  const Trie trie(Trie::Entries(keys.begin(), keys.end()));
  for (int i = 0; i < 2000; ++i) {
    const std::string text = word() + word();
    int32_t longest = Trie::kNone;
    for (size_t n = 1; n <= text.size(); ++n) {
      if (auto it = keys.find(text.substr(0, n)); it != keys.end()) longest = it->second;
    }
    ASSERT_EQ(trie.Longest(text).value, longest);
  }
}

}  // namespace
}  // namespace llava
