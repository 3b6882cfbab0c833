#include "server/llm/kv_blocks.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "model/text/tokenizer.h"

namespace llava {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kTokens = KvBlocks::kTokens;

// Cache and what really lies in its blocks.
class World {
 public:
  explicit World(int64_t blocks) : cache(blocks), content_(static_cast<size_t>(blocks)) {}

  // True rows where the table says they are.
  void Expect(const KvTable& table) const {
    for (int64_t row = 0; row < table.computed; ++row) {
      ASSERT_EQ(At(table, row), table.rows[row]) << "row " << row << " of " << table.computed;
    }
  }

  void Begin(KvTable& table) {
    if (const auto copy = cache.Begin(table)) content_[copy->to] = content_[copy->from];
    Expect(table);
  }

  bool Compute(KvTable& table, int64_t rows) {
    if (!cache.Grow(table, rows)) return false;
    for (int64_t i = 0; i < rows; ++i) {
      At(table, table.computed + i) = table.rows[table.computed + i];
    }
    cache.Advance(table, rows);
    return true;
  }

  // A sequence from its beginning to its end.
  int64_t Run(const std::vector<RowKey>& rows, bool keep = true, const std::string& salt = "") {
    KvTable table{.salt = salt, .rows = rows};
    Begin(table);
    const int64_t cached = table.cached;
    EXPECT_TRUE(Compute(table, static_cast<int64_t>(rows.size()) - table.computed));
    cache.End(table, keep);
    return cached;
  }

  KvBlocks cache;

 private:
  RowKey& At(const KvTable& table, int64_t row) {
    return content_[table.blocks[row / kTokens]][row % kTokens];
  }
  const RowKey& At(const KvTable& table, int64_t row) const {
    return content_[table.blocks[row / kTokens]][row % kTokens];
  }

  std::vector<std::array<RowKey, kTokens>> content_;
};

std::vector<RowKey> Rows(int64_t count, int32_t first = 100) {
  std::vector<RowKey> rows;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(RowKey::Token(first + static_cast<int32_t>(i)));
  }
  return rows;
}

std::vector<RowKey> operator+(std::vector<RowKey> a, const std::vector<RowKey>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(KvBlocksTest, SharesWhatIsThereAndNeverTheLastRow) {
  struct Case {
    int64_t before, now, cached;
  };
  for (const Case& c : std::vector<Case>{{40, 40, 39},
                                         {40, 41, 40},
                                         {40, 100, 40},
                                         {32, 33, 32},
                                         {32, 32, 31},
                                         {16, 17, 16},
                                         {7, 20, 7},
                                         {40, 20, 19},
                                         {1, 1, 0},
                                         {1, 2, 1}}) {
    World world(20);
    EXPECT_EQ(world.Run(Rows(c.before)), 0);
    EXPECT_EQ(world.cache.FindPrefix("", Rows(c.now)), c.cached);
    EXPECT_EQ(world.Run(Rows(c.now)), c.cached) << c.before << " then " << c.now;
    world.cache.Check({});
  }
}

TEST(KvBlocksTest, SharesUpToWhereContentsPart) {
  World world(30);
  world.Run(Rows(50));
  EXPECT_EQ(world.Run(Rows(37) + Rows(20, 900)), 37);
  EXPECT_EQ(world.Run(Rows(50)), 49) << "the first one is still there";
  EXPECT_EQ(world.Run(Rows(37) + Rows(30, 900)), 57);
  EXPECT_EQ(world.Run(Rows(50, 500)), 0);
}

TEST(KvBlocksTest, AFullerBlockTakesThePlaceOfItsBeginning) {
  World world(30);
  world.Run(Rows(20));
  EXPECT_EQ(world.cache.idle(), 2);
  world.Run(Rows(25));
  EXPECT_EQ(world.cache.idle(), 2);
  world.Run(Rows(22));
  EXPECT_EQ(world.cache.idle(), 2);
  EXPECT_EQ(world.Run(Rows(30)), 25);
}

TEST(KvBlocksTest, TwoThatComputeTheSameKeepOneOfIt) {
  World world(30);
  KvTable a{.rows = Rows(40)}, b{.rows = Rows(40)};
  world.Begin(a);
  world.Begin(b);
  ASSERT_TRUE(world.Compute(a, 40));
  ASSERT_TRUE(world.Compute(b, 40));
  world.Expect(b);
  EXPECT_EQ(a.blocks[0], b.blocks[0]);
  EXPECT_NE(a.blocks[2], b.blocks[2]) << "not full, so its own";
  EXPECT_EQ(world.cache.free(), 30 - 4);
  world.cache.Check(std::vector<const KvTable*>{&a, &b});
  world.cache.End(a, true);
  world.cache.End(b, true);
  EXPECT_EQ(world.cache.idle(), 3);
  world.cache.Check({});
}

TEST(KvBlocksTest, SaltsDoNotMeet) {
  World world(30);
  world.Run(Rows(40), true, "alice");
  EXPECT_EQ(world.cache.FindPrefix("bob", Rows(50)), 0);
  EXPECT_EQ(world.Run(Rows(50), true, "bob"), 0);
  EXPECT_EQ(world.Run(Rows(50), true, "alice"), 40);
}

TEST(KvBlocksTest, WhatIsNotKeptIsNotFound) {
  World world(30);
  world.Run(Rows(20));
  world.Run(Rows(20, 400));
  world.Run(Rows(16) + Rows(40, 700), /*keep=*/false);
  EXPECT_EQ(world.cache.FindPrefix("", Rows(16) + Rows(40, 700)), 0) << "nor what was found";
  EXPECT_EQ(world.cache.FindPrefix("", Rows(60)), 0);
  EXPECT_EQ(world.Run(Rows(60, 400), /*keep=*/false), 20);
  EXPECT_EQ(world.cache.available(), 30);
  world.cache.Check({});
}

// The second one found what the first one computed, and both gave no numbers.
TEST(KvBlocksTest, WhatTwoSharedAndNeitherKeepsIsGone) {
  World world(30);
  KvTable first{.rows = Rows(80)}, second{.rows = Rows(64) + Rows(30, 700)};
  const auto check = [&](std::vector<const KvTable*> tables) { world.cache.Check(tables); };
  world.Begin(first);
  ASSERT_TRUE(world.Compute(first, 48));
  world.Begin(second);
  EXPECT_EQ(second.cached, 48);
  ASSERT_TRUE(world.Compute(first, 32));
  ASSERT_TRUE(world.Compute(second, 46));
  world.cache.End(first, /*keep=*/false);
  check({&second});
  EXPECT_EQ(world.cache.FindPrefix("", Rows(80)), 0) << "while the second still uses it";

  // A third one computes the same anew, and its blocks are its own.
  KvTable third{.rows = Rows(80)};
  world.Begin(third);
  ASSERT_TRUE(world.Compute(third, 80));
  EXPECT_NE(third.blocks[0], second.blocks[0]);
  check({&second, &third});
  world.cache.End(second, /*keep=*/true);
  check({&third});
  EXPECT_EQ(world.cache.idle(), 0) << "nothing that began with doubtful rows stays";
  world.cache.End(third, /*keep=*/true);
  EXPECT_EQ(world.cache.FindPrefix("", Rows(81)), 80);

  // What was good once and is not any more goes too, with what others left behind it.
  EXPECT_EQ(world.Run(Rows(48) + Rows(20, 900), /*keep=*/false), 48);
  check({});
  EXPECT_EQ(world.cache.FindPrefix("", Rows(81)), 0);
  EXPECT_EQ(world.Run(Rows(80)), 0);
  EXPECT_EQ(world.Run(Rows(80)), 79);
  check({});
}

TEST(KvBlocksTest, TheLeastRecentlyUsedLeavesFirst) {
  World world(6);
  world.Run(Rows(32, 100));
  world.Run(Rows(32, 200));
  world.Run(Rows(32, 300));
  EXPECT_EQ(world.cache.free(), 0);
  world.Run(Rows(32, 100));  // used again
  world.Run(Rows(17, 400));
  EXPECT_EQ(world.cache.evicted(), 2);
  EXPECT_EQ(world.cache.FindPrefix("", Rows(33, 100)), 32);
  EXPECT_EQ(world.cache.FindPrefix("", Rows(33, 200)), 0);
  EXPECT_EQ(world.cache.FindPrefix("", Rows(33, 300)), 32);
  world.cache.Check({});
}

TEST(KvBlocksTest, GrowsOnlyIntoWhatNobodyUses) {
  World world(4);
  KvTable a{.rows = Rows(64)}, b{.rows = Rows(64, 500)};
  world.Begin(a);
  world.Begin(b);
  ASSERT_TRUE(world.Compute(a, 33));
  EXPECT_FALSE(world.cache.Grow(b, 17));
  EXPECT_TRUE(b.blocks.empty());
  EXPECT_TRUE(world.cache.Grow(b, 16));
  EXPECT_FALSE(world.Compute(a, 16)) << "48 fit, 49 do not";
  EXPECT_TRUE(world.Compute(a, 15));
  world.cache.End(b, true);
  EXPECT_TRUE(world.Compute(a, 16));
  world.Expect(a);
  world.cache.End(a, true);
  world.cache.Check({});
}

TEST(KvBlocksTest, WithoutRoomForACopyAPartIsNotShared) {
  World world(2);
  world.Run(Rows(20));
  KvTable other{.rows = Rows(24)};
  world.Begin(other);
  EXPECT_EQ(other.cached, 16) << "the only block left holds what would be copied";
  EXPECT_TRUE(world.Compute(other, 8));
  world.Expect(other);
}

TEST(KvBlocksTest, RowsOfPicturesAreNamedAfterTheirFeatures) {
  const std::vector<int32_t> ids = {1, kImageToken, 7, kImageToken};
  const std::vector<int64_t> three = {3, 3};
  const auto rows = RowsOf(ids, std::vector<std::string>{"a", "b"}, three);
  ASSERT_EQ(rows.size(), 8u);
  EXPECT_EQ(rows[0], RowKey::Token(1));
  EXPECT_EQ(rows[4], RowKey::Token(7));
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(rows[i], rows[j]);
  }
  const auto same = RowsOf(ids, std::vector<std::string>{"a", "a"}, three);
  EXPECT_EQ(same[1], rows[1]);
  EXPECT_EQ(same[5], same[1]) << "the same picture again";
  EXPECT_NE(same[5], rows[5]);
  const std::vector<int64_t> two_and_four = {2, 4};
  const auto other = RowsOf(ids, std::vector<std::string>{"a", "b"}, two_and_four);
  ASSERT_EQ(other.size(), 8u);
  EXPECT_EQ(other[1], rows[1]);
  EXPECT_EQ(other[3], RowKey::Token(7)) << "the first picture has two rows";
  EXPECT_EQ(other[4], rows[5]);
  EXPECT_NE(other[7], rows[7]) << "the second one a row more";
}

TEST(PictureStartsTest, AreTheFirstRowsOfPicturesThatAreLeft) {
  const std::vector<int32_t> ids = {1, kImageToken, 7, kImageToken, kImageToken, 8};
  const std::vector<int64_t> tokens = {3, 2, 4};  // rows 1 to 3, 5 to 6, 7 to 10
  const auto starts = [&](int64_t computed) { return PictureStarts(ids, tokens, computed); };
  using Rows = std::vector<int64_t>;
  EXPECT_EQ(starts(0), (Rows{1, 5, 7}));
  EXPECT_EQ(starts(1), (Rows{1, 5, 7}));
  EXPECT_EQ(starts(3), (Rows{3, 5, 7}));
  EXPECT_EQ(starts(4), (Rows{5, 7}));
  EXPECT_EQ(starts(10), (Rows{10}));
  EXPECT_EQ(starts(11), Rows{});
  EXPECT_EQ(PictureStarts(std::vector<int32_t>{1, 2}, {}, 0), Rows{});
}

// Sequences that come, grow, are set back and leave in every way.
TEST(KvBlocksTest, LosesNoBlockUnderRandomTraffic) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const auto draw = [&](int64_t below) { return static_cast<int64_t>(random() % below); };
    World world(8 + draw(60));
    std::vector<KvTable> running;
    for (int step = 0; step < 1000; ++step) {
      const int64_t action = draw(10);
      if (running.empty() || action < 2) {
        KvTable table{.salt = draw(4) == 0 ? "other" : ""};
        // Few beginnings, so that many are shared.
        for (int64_t part = 1 + draw(4); part-- > 0;) {
          table.rows = table.rows + Rows(1 + draw(30), static_cast<int32_t>(100 * draw(3)));
        }
        world.Begin(table);
        running.push_back(std::move(table));
      } else {
        const int64_t which = draw(static_cast<int64_t>(running.size()));
        KvTable& table = running[which];
        const int64_t left = static_cast<int64_t>(table.rows.size()) - table.computed;
        if (action < 8 && left > 0) {
          world.Compute(table, 1 + draw(left));
        } else if (action < 8) {
          table.rows.push_back(RowKey::Token(static_cast<int32_t>(draw(2))));
          world.Compute(table, 1);
        } else if (action == 8) {
          world.cache.End(table, true);  // preempted, and begun anew
          world.Begin(table);
        } else {
          world.cache.End(table, draw(4) != 0);
          running.erase(running.begin() + which);
        }
      }
      if (!running.empty()) {
        const KvTable& any = running[draw(static_cast<int64_t>(running.size()))];
        KvBlocks after = world.cache;
        KvTable copy = any;
        after.End(copy, true);
        ASSERT_EQ(after.available() - world.cache.available(), world.cache.Regained(any));
        const int64_t missing = after.Missing(any.salt, any.rows);
        const int64_t before = after.available();
        after.Begin(copy);
        if (after.Grow(copy, static_cast<int64_t>(any.rows.size()) - copy.computed)) {
          ASSERT_EQ(before - after.available(), missing);
        } else {
          ASSERT_GT(missing, before);
        }
      }
      std::vector<const KvTable*> tables;
      for (const KvTable& table : running) {
        tables.push_back(&table);
        world.Expect(table);
      }
      ASSERT_NO_THROW(world.cache.Check(tables)) << "seed " << seed << ", step " << step;
      ASSERT_FALSE(testing::Test::HasFatalFailure());
    }
    for (KvTable& table : running) world.cache.End(table, true);
    world.cache.Check({});
    EXPECT_EQ(world.cache.available(), world.cache.total());
  }
}

}  // namespace
}  // namespace llava
