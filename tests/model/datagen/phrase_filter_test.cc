#include "model/datagen/phrase_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace llava {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

// 300 captions that name "sky"; every third "kite" as well; three of them "owl"; two "yak".
PhraseIndex SkyWithThings() {
  PhraseIndex index;
  for (int i = 0; i < 300; ++i) {
    std::vector<std::string> phrases = {"sky", "sky"};
    if (i % 3 == 0) phrases.push_back("kite");
    if (i == 7 || i == 8 || i == 250) phrases.push_back("owl");
    if (i == 10 || i == 11) phrases.push_back("yak");
    index.Add(phrases);
  }
  index.Add({});
  return index;
}

TEST(PhraseFilterTest, TakesRarePhrasesWholeAndCapsFrequentOnes) {
  const PhraseIndex index = SkyWithThings();
  const auto chosen = index.Choose({.min_frequency = 3, .cap = 100, .seed = 1});
  const std::set<uint32_t> set(chosen.begin(), chosen.end());
  EXPECT_EQ(set.size(), chosen.size());  // a caption enters once
  for (const uint32_t owl : {7u, 8u, 250u}) EXPECT_TRUE(set.contains(owl));
  for (uint32_t kite = 0; kite < 300; kite += 3) EXPECT_TRUE(set.contains(kite));  // exactly 100
  EXPECT_FALSE(set.contains(300));                                                 // names nothing
  // 103 by owls and kites, and of 100 drawn for "sky" those that are not among them.
  EXPECT_GT(chosen.size(), 103u + 40);
  EXPECT_LT(chosen.size(), 103u + 90);
}

TEST(PhraseFilterTest, PhrasesBelowTheLeastFrequencyCountForNothing) {
  PhraseIndex index;
  index.Add({"yak"});
  index.Add({"yak", "owl"});
  index.Add({"owl"});
  index.Add({"owl"});
  EXPECT_THAT(index.Choose({.min_frequency = 3, .cap = 100}), ElementsAre(1, 2, 3));
  EXPECT_THAT(index.Choose({.min_frequency = 2, .cap = 100}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(index.Choose({.min_frequency = 4, .cap = 100}), ElementsAre());
}

TEST(PhraseFilterTest, DependsOnTheSeedOnly) {
  const PhraseIndex index = SkyWithThings();
  EXPECT_EQ(index.Choose({.seed = 1}), SkyWithThings().Choose({.seed = 1}));
  EXPECT_NE(index.Choose({.seed = 1}), index.Choose({.seed = 2}));
}

TEST(PhraseFilterTest, CapDrawsEvenly) {
  PhraseIndex index;
  for (int i = 0; i < 1000; ++i) index.Add({"sky"});
  const auto chosen = index.Choose({.min_frequency = 3, .cap = 100, .seed = 5});
  ASSERT_EQ(chosen.size(), 100u);
  uint64_t sum = 0;
  for (const uint32_t caption : chosen) sum += caption;
  EXPECT_NEAR(static_cast<double>(sum) / 100, 499.5, 100);  // standard deviation 27
}

TEST(PhraseFilterTest, TellsBeforeAndAfter) {
  const PhraseIndex index = SkyWithThings();
  const PhraseIndex::Rules rules;
  const auto before = index.Statistics(rules);
  EXPECT_EQ(before["captions"], 301);
  EXPECT_EQ(before["without_phrase"], 1);
  EXPECT_EQ(before["phrases"], 4);
  EXPECT_EQ(before["frequent_phrases"], 3);
  EXPECT_EQ(before["phrases_over_cap"], 1);
  EXPECT_EQ(before["mentions"], 405);
  EXPECT_EQ(before["frequency"]["2"], 1);
  EXPECT_EQ(before["frequency"]["3-9"], 1);
  EXPECT_EQ(before["frequency"]["100-999"], 2);
  EXPECT_EQ(before["most_frequent"][0][0], "sky");
  EXPECT_EQ(before["most_frequent"][0][1], 300);
  const auto chosen = index.Choose(rules);
  const auto after = index.Statistics(rules, chosen);
  EXPECT_EQ(after["captions"], chosen.size());
  EXPECT_EQ(after["most_frequent"][0][1], chosen.size());
  EXPECT_EQ(after["frequency"]["3-9"], 1);
}

}  // namespace
}  // namespace llava
