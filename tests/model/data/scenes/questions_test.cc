#include "model/data/scenes/questions.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <stdexcept>

#include "tests/model/data/scenes/truth_checker.h"

namespace llava {
namespace {

using enum QuestionType;
constexpr int kScenes = 20000;

SceneOptions Easy() { return {}; }

SceneOptions Hard() {
  SceneOptions options;
  options.num_categories = kLargeCategorySet;
  options.max_objects = 4;
  options.positions = SceneOptions::Positions::kFree;
  options.held_out = SceneOptions::HeldOut::kAny;
  return options;
}

MoreWordings Lists() { return {{"Say it briefly."}, {"Say it at length."}}; }

// Answers to all types over many scenes, every one checked.
class QuestionsTest : public testing::TestWithParam<SceneOptions> {
 protected:
  static const std::map<QuestionType, std::map<std::string, int>>& Answers() {
    static std::map<int, std::map<QuestionType, std::map<std::string, int>>> all;
    auto& answers = all[GetParam().num_categories];
    if (!answers.empty()) return answers;
    const Questioner questioner(GetParam().num_categories, Lists());
    Random random(77);
    for (int i = 0; i < kScenes; ++i) {
      const Scene scene = SampleScene(GetParam(), 42, i);
      for (const auto& [type, weight] : NaturalMixture()) {
        const auto turn = questioner.Ask(scene, type, random);
        if (!turn) continue;
        EXPECT_EQ(turn->type, type);
        EXPECT_EQ(TruthChecker(scene).Fault(*turn), "") << NameOf(type) << ", scene " << i;
        ++answers[type][turn->answer];
      }
    }
    return answers;
  }

  static double Share(QuestionType type, const std::string& answer) {
    int total = 0;
    for (const auto& [text, count] : Answers().at(type)) total += count;
    const auto found = Answers().at(type).find(answer);
    return found == Answers().at(type).end() ? 0 : 1.0 * found->second / total;
  }
};

TEST_P(QuestionsTest, EveryAnswerIsTrueAndEveryTypeComes) {
  for (const auto& [type, weight] : NaturalMixture()) {
    ASSERT_TRUE(Answers().contains(type)) << NameOf(type);
    int total = 0;
    for (const auto& [text, count] : Answers().at(type)) total += count;
    EXPECT_GE(total, 3000) << NameOf(type);
  }
}

TEST_P(QuestionsTest, YesAndNoAreBalanced) {
  for (const QuestionType type : {kExist, kEat, kFly, kAlive, kSame}) {
    EXPECT_NEAR(Share(type, "Yes."), 0.5, 0.03) << NameOf(type);
    EXPECT_EQ(Answers().at(type).size(), 2u) << NameOf(type);
  }
  EXPECT_NEAR(Share(kAbove, "Above."), 0.5, 0.03);
  EXPECT_NEAR(Share(kSideOf, "On the left."), 0.5, 0.03);
}

TEST_P(QuestionsTest, NoNumberIsCommon) {
  const int most = GetParam().max_objects;
  double sum = 0;
  for (int number = 0; number <= most; ++number) {
    const double share = Share(kCount, CountAnswer(number));
    EXPECT_GE(share, number < 4 ? 0.14 : 0.06) << number;
    EXPECT_LE(share, 0.32) << number;
    sum += share;
  }
  EXPECT_NEAR(sum, 1, 1e-9);
  EXPECT_LE(Share(kGroupCount, "None."), 0.45);
  EXPECT_LE(Share(kWhichEat, "None."), 0.45);
  EXPECT_LE(Share(kWhichFly, "None."), 0.45);
}

TEST_P(QuestionsTest, NoCategoryIsTheUsualAnswer) {
  for (const QuestionType type : {kSide, kLeftOf, kBigger, kThis}) {
    for (const auto& [answer, count] : Answers().at(type)) {
      EXPECT_LE(Share(type, answer), 1.8 / GetParam().num_categories) << answer;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, QuestionsTest, testing::Values(Easy(), Hard()),
                         [](const auto& info) {
                           return std::to_string(info.param.num_categories);
                         });

TEST(QuestionerTest, TheCheckerFindsWrongAnswers) {
  const Questioner questioner(kSmallCategorySet, Lists());
  Random random(3);
  std::map<QuestionType, int> caught;
  for (int i = 0; i < 300; ++i) {
    const Scene scene = SampleScene({}, 5, i);
    Scene other = SampleScene({}, 6, i);
    other.background = (scene.background + 1) % static_cast<int>(kBackgrounds.size());
    for (const auto& [type, weight] : NaturalMixture()) {
      const auto turn = questioner.Ask(other, type, random);
      if (turn && !TruthChecker(scene).Fault(*turn).empty()) ++caught[type];
    }
  }
  for (const auto& [type, weight] : NaturalMixture()) EXPECT_GE(caught[type], 10) << NameOf(type);
}

TEST(QuestionerTest, IsAFunctionOfItsRandomNumbers) {
  const Questioner questioner(kSmallCategorySet);
  for (int i = 0; i < 50; ++i) {
    const Scene scene = SampleScene({}, 1, i);
    Random first(9, i), second(9, i);
    const auto a = questioner.AskOneOf(scene, NaturalMixture(), first);
    const auto b = questioner.AskOneOf(scene, NaturalMixture(), second);
    ASSERT_TRUE(a && b);
    EXPECT_EQ(a->question, b->question);
    EXPECT_EQ(a->answer, b->answer);
  }
}

TEST(QuestionerTest, UsesTheListsItIsGiven) {
  const Scene scene = SampleScene({}, 1, 1);
  Random random(4);
  EXPECT_EQ(Questioner(kSmallCategorySet).Ask(scene, kBrief, random), std::nullopt);
  const Questioner questioner(kSmallCategorySet, Lists());
  EXPECT_EQ(questioner.Ask(scene, kBrief, random)->question, "Say it briefly.");
  std::set<std::string> detailed;
  for (int i = 0; i < 100; ++i) detailed.insert(questioner.Ask(scene, kDetail, random)->question);
  EXPECT_EQ(detailed.size(), 4u);
  EXPECT_TRUE(detailed.contains("Say it at length."));
}

TEST(QuestionerTest, RefusesWhatItCannotDo) {
  const Scene scene = SampleScene({}, 1, 1);
  Random random(4);
  EXPECT_THROW(Questioner(kSmallCategorySet).Ask(scene, kFollowSide, random),
               std::invalid_argument);
  EXPECT_THROW(Questioner(50), std::invalid_argument);
  const TypeWeight never[] = {{kBrief, 1}};
  EXPECT_EQ(Questioner(kSmallCategorySet).AskOneOf(scene, never, random), std::nullopt);
}

TEST(QuestionTypeTest, NamesReadBack) {
  for (int i = 0; i < kNumQuestionTypes; ++i) {
    const auto type = static_cast<QuestionType>(i);
    EXPECT_EQ(QuestionTypeNamed(NameOf(type)), type);
  }
  EXPECT_THROW(QuestionTypeNamed("why"), std::invalid_argument);
}

TEST(WordingTest, FillsPartsInAnyOrder) {
  EXPECT_EQ(Fill("{1} of {0}?", {"a", "b"}), "b of a?");
  EXPECT_EQ(Fill("none", {"a"}), "none");
}

}  // namespace
}  // namespace llava
