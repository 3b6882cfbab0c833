#include "model/data/scenes/category.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace llava {
namespace {

TEST(CategoryTest, TheFirstSetKeepsItsOrder) {
  const std::vector<std::string> names = {
      "lion",      "elephant",  "pig",     "frog",     "panda",      "penguin",   "owl",
      "butterfly", "bee",       "octopus", "turtle",   "crab",       "snail",     "parrot",
      "apple",     "banana",    "pear",    "lemon",    "strawberry", "pineapple", "watermelon",
      "pizza",     "hamburger", "donut",   "cake",     "carrot",     "eggplant",  "car",
      "bus",       "bicycle",   "train",   "airplane", "helicopter", "rocket",    "sailboat",
      "rose",      "sunflower", "cactus",  "tree",     "umbrella",   "key",       "clock",
      "guitar",    "drum",      "ball",    "heart",    "house",      "star"};
  ASSERT_EQ(names.size(), static_cast<size_t>(kSmallCategorySet));
  ASSERT_EQ(Categories().size(), static_cast<size_t>(kLargeCategorySet));
  for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(Categories()[i].name, names[i]) << i;
}

TEST(CategoryTest, NoWordMeansTwoThings) {
  std::set<std::string> words;
  std::set<std::string> others = {"animal", "fruit", "food",  "vehicle", "plant", "object",
                                  "one",    "two",   "three", "four",    "none",  "thing",
                                  "left",   "right", "top",   "bottom",  "center"};
  for (const Category& category : Categories()) others.insert(category.colour);
  for (const Background& background : kBackgrounds) others.emplace(background.name);
  for (const Category& category : Categories()) {
    for (const std::string& word : {category.name, category.plural}) {
      EXPECT_TRUE(words.insert(word).second) << word;
      EXPECT_FALSE(others.contains(word)) << word;
      EXPECT_TRUE(std::all_of(word.begin(), word.end(), [](char c) {
        return c >= 'a' && c <= 'z';
      })) << word;
    }
  }
}

TEST(CategoryTest, FactsFitTogether) {
  for (const Category& category : Categories()) {
    const bool living = category.group == "animal" || category.group == "plant";
    const bool eaten = category.group == "fruit" || category.group == "food";
    EXPECT_EQ(category.alive, living) << category.name;
    EXPECT_EQ(category.edible, eaten) << category.name;
    EXPECT_EQ(category.article,
              (std::string("aeiou").find(category.name[0]) != std::string::npos) ? "an" : "a");
  }
}

TEST(CategoryTest, EverySetHasEnoughOfEveryGroup) {
  for (const int size : {kSmallCategorySet, kLargeCategorySet}) {
    std::map<std::string, int> groups;
    for (int i = 0; i < size; ++i) ++groups[Categories()[i].group];
    EXPECT_EQ(groups.size(), 6u);
    for (const auto& [group, count] : groups) EXPECT_GE(count, 4) << group;
  }
}

TEST(CategoryTest, SpritesLieApartInTheAtlas) {
  for (size_t i = 0; i < Categories().size(); ++i) {
    const auto& a = Categories()[i].sprite;
    EXPECT_GE(std::min(a.width, a.height), 32) << Categories()[i].name;
    for (size_t j = 0; j < i; ++j) {
      const auto& b = Categories()[j].sprite;
      EXPECT_TRUE(a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y ||
                  b.y + b.height <= a.y);
    }
  }
}

// Figures of Python's zlib.crc32.
TEST(CategoryTest, HeldOutPairsAreThoseOfTheChecksum) {
  int small = 0, all = 0;
  int64_t sum = 0;
  for (int a = 0; a < kLargeCategorySet; ++a) {
    EXPECT_FALSE(IsHeldOutPair(a, a));
    for (int b = a + 1; b < kLargeCategorySet; ++b) {
      EXPECT_EQ(IsHeldOutPair(a, b), IsHeldOutPair(b, a));
      if (!IsHeldOutPair(a, b)) continue;
      ++all;
      small += b < kSmallCategorySet;
      sum += a * kLargeCategorySet + b;
    }
  }
  EXPECT_EQ(all, 393);
  EXPECT_EQ(small, 83);
  EXPECT_EQ(sum, 1328940);
}

TEST(CategoryTest, FindsByName) {
  EXPECT_EQ(FindCategory("lion"), 0);
  EXPECT_EQ(FindCategory("robot"), 95);
  EXPECT_EQ(FindCategory("lions"), std::nullopt);
  EXPECT_EQ(WithArticle(Categories()[1]), "an elephant");
}

}  // namespace
}  // namespace llava
