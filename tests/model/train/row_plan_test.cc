#include "model/train/row_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace llava {
namespace {

// `pictures`: of each record; 0 is none, -1 a record that cannot be used.
RecordSurvey Survey(const std::vector<int>& pictures, int32_t tokens = 30) {
  RecordSurvey survey;
  for (size_t i = 0; i < pictures.size(); ++i) {
    RecordFacts facts;
    if (pictures[i] >= 0) {
      facts.tokens = tokens;
      facts.words = 10 + static_cast<int32_t>(i);
      facts.image_tokens = pictures[i] > 0 ? 16 : 0;
      facts.picture = pictures[i];
      survey.usable.push_back(i);
    }
    survey.facts.push_back(facts);
  }
  return survey;
}

std::vector<std::vector<int64_t>> Rows(const RowPlan& plan) {
  std::vector<std::vector<int64_t>> rows;
  for (int64_t row = 0; row < plan.rows(); ++row) {
    const auto records = plan.Records(row);
    rows.emplace_back(records.begin(), records.end());
  }
  return rows;
}

using List = std::vector<std::vector<int64_t>>;

TEST(RowPlanTest, RecordsOfOnePictureThatStandTogetherShareARow) {
  const RecordSurvey survey = Survey({1, 1, -1, 1, 2, 1, 0, 0, 3, 3});
  EXPECT_EQ(Rows(RowPlan(survey, {})), (List{{0}, {1}, {3}, {4}, {5}, {6}, {7}, {8}, {9}}));
  EXPECT_EQ(Rows(RowPlan(survey, {.pack = true})), (List{{0, 1, 3}, {4}, {5}, {6}, {7}, {8, 9}}));
}

TEST(RowPlanTest, ARowStaysWithinItsTokens) {
  const RecordSurvey survey = Survey({1, 1, 1, 1, 1});  // 16 of the picture, 14 of their own
  const auto rows = [&](int64_t tokens) {
    return Rows(RowPlan(survey, {.pack = true, .row_tokens = tokens}));
  };
  EXPECT_EQ(rows(16 + 3 * 14), (List{{0, 1, 2}, {3, 4}}));
  EXPECT_EQ(rows(16 + 3 * 14 - 1), (List{{0, 1}, {2, 3}, {4}}));
  EXPECT_EQ(rows(1), (List{{0}, {1}, {2}, {3}, {4}}));
  const RowPlan plan(survey, {.pack = true, .row_tokens = 16 + 3 * 14});
  EXPECT_EQ(plan.Tokens(0), 16 + 3 * 14);
  EXPECT_EQ(plan.Tokens(1), 16 + 2 * 14);
}

TEST(RowPlanTest, LengthsAreThoseOfThePicturesToo) {
  RecordSurvey survey = Survey({1, 2, 3, 4});  // words 10 to 13
  for (const auto& [record, tokens] : {std::pair{0, 90}, {1, 20}, {2, 70}, {3, 30}}) {
    survey.facts[record].tokens = tokens;
  }
  const auto sorted = [&](bool by_tokens) {
    const RowPlan plan(
        survey,
        {.order = RowOrder::kByLength, .by_tokens = by_tokens, .batch = 4, .accumulation = 1});
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < 4; ++i) rows.push_back(plan.At(i).row);
    return rows;
  };
  EXPECT_EQ(sorted(false), (std::vector<int64_t>{3, 2, 1, 0}));
  EXPECT_EQ(sorted(true), (std::vector<int64_t>{0, 2, 3, 1}));
}

TEST(RowPlanTest, EveryEpochHasEveryRowInAnOrderOfItsOwn) {
  const RowPlan plan(Survey(std::vector<int>(40, 0)), {.seed = 7});
  const auto epoch = [&](const RowPlan& of, uint64_t number) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < 40; ++i) {
      const RowPlan::Place place = of.At(static_cast<int64_t>(number) * 40 + i);
      EXPECT_EQ(place.epoch, number);
      rows.push_back(place.row);
    }
    return rows;
  };
  const auto first = epoch(plan, 0), second = epoch(plan, 1), third = epoch(plan, 2);
  EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()).size(), 40u);
  EXPECT_NE(first, second);
  EXPECT_NE(second, third);
  EXPECT_EQ(epoch(plan, 0), first) << "asked for again after later ones";
  const RowPlan other(Survey(std::vector<int>(40, 0)), {.seed = 8});
  EXPECT_NE(epoch(other, 0), first);
  const RowPlan as_data(Survey(std::vector<int>(40, 0)), {.order = RowOrder::kAsData});
  EXPECT_TRUE(std::ranges::is_sorted(epoch(as_data, 3)));
}

TEST(RowPlanTest, OrdersByLengthInMegabatches) {
  const RowPlan plan(Survey({1, 0, 2, 0, 3, 0, 4, 0}),
                     {.order = RowOrder::kByLength, .batch = 4, .accumulation = 1});
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < 8; ++i) rows.push_back(plan.At(i).row);
  // Four of each kind are its last megabatch: both stand at the end, sorted by number.
  EXPECT_THAT(rows, testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  const RowPlan one_kind(Survey({1, 2, 3, 4}),
                         {.order = RowOrder::kByLength, .batch = 4, .accumulation = 1});
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(one_kind.At(i).row, 3 - i);  // words grow with numbers
}

}  // namespace
}  // namespace llava
