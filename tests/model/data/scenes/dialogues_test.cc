#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/data/scenes/questions.h"
#include "model/digest/sha256.h"
#include "tests/model/data/scenes/truth_checker.h"

namespace llava {
namespace {

using enum QuestionType;

SceneOptions Hard() {
  SceneOptions options;
  options.num_categories = kLargeCategorySet;
  options.max_objects = 4;
  options.positions = SceneOptions::Positions::kFree;
  return options;
}

bool IsFollowUp(QuestionType type) { return type >= kFollowSide; }

void ExpectTrue(const Scene& scene, const Dialogue& dialogue) {
  TruthChecker checker(scene);
  for (const Turn& turn : dialogue) EXPECT_EQ(checker.Fault(turn), "");
}

TEST(DialoguesTest, ChainsBeginClearlyAndFollowUp) {
  const Questioner questioner(kLargeCategorySet);
  Random random(1);
  std::map<QuestionType, int> types;
  int chains = 0;
  for (int i = 0; i < 20000; ++i) {
    const Scene scene = SampleScene(Hard(), 8, i);
    const auto chain = questioner.AskChain(scene, random);
    if (!chain) continue;
    ++chains;
    ExpectTrue(scene, *chain);
    ASSERT_GE(chain->size(), 2u);
    ASSERT_LE(chain->size(), 4u);
    for (size_t k = 0; k < chain->size(); ++k) {
      EXPECT_EQ(IsFollowUp((*chain)[k].type), k > 0);
      ++types[(*chain)[k].type];
    }
  }
  EXPECT_GE(chains, 6000);
  for (int i = static_cast<int>(kFollowSide); i < kNumQuestionTypes; ++i) {
    EXPECT_GE(types[static_cast<QuestionType>(i)], 500) << NameOf(static_cast<QuestionType>(i));
  }
}

TEST(DialoguesTest, FollowUpsWithYesAndNoAreBalanced) {
  const Questioner questioner(kSmallCategorySet);
  Random random(2);
  std::map<QuestionType, std::map<std::string, int>> answers;
  for (int i = 0; i < 20000; ++i) {
    const Scene scene = SampleScene({}, 9, i);
    for (const Turn& turn : questioner.AskChain(scene, random).value_or(Dialogue())) {
      ++answers[turn.type][turn.answer];
    }
  }
  for (const QuestionType type : {kFollowEat, kFollowFly, kFollowAlive}) {
    const double yes = answers[type]["Yes."], no = answers[type]["No."];
    EXPECT_GE(yes + no, 700) << NameOf(type);
    EXPECT_NEAR(yes / (yes + no), 0.5, 0.06) << NameOf(type);
  }
}

TEST(DialoguesTest, ConversationsAreTrueAndDoNotAskTwice) {
  const Questioner questioner(kLargeCategorySet, {{"Say it briefly."}, {}});
  Random random(3);
  for (int i = 0; i < 5000; ++i) {
    const Scene scene = SampleScene(Hard(), 10, i);
    const Dialogue dialogue = questioner.Converse(scene, 6, random);
    ASSERT_GE(dialogue.size(), 6u);
    ASSERT_LE(dialogue.size(), 9u);
    EXPECT_FALSE(IsFollowUp(dialogue.front().type));
    ExpectTrue(scene, dialogue);
    std::set<std::string> questions;
    for (const Turn& turn : dialogue) {
      if (IsFollowUp(turn.type)) continue;
      EXPECT_TRUE(questions.insert(turn.question).second) << turn.question;
    }
  }
}

TEST(DialoguesTest, ShortDialoguesAreMostlySingleQuestions) {
  const Questioner questioner(kSmallCategorySet);
  Random random(4);
  std::map<size_t, int> sizes;
  for (int i = 0; i < 4000; ++i) {
    const Scene scene = SampleScene({}, 11, i);
    const Dialogue dialogue = questioner.ShortDialogue(scene, random);
    ExpectTrue(scene, dialogue);
    ++sizes[dialogue.size()];
  }
  EXPECT_EQ(sizes[0], 0);
  EXPECT_GE(sizes[1], 1500);
  EXPECT_GE(sizes[2] + sizes[3] + sizes[4], 1000);
}

// Data sets that exist can be made again.
TEST(DialoguesTest, AreWhatTheyWere) {
  const Questioner questioner(kLargeCategorySet, {{"Say it briefly."}, {"Say it at length."}});
  Sha256 hash;
  for (int i = 0; i < 500; ++i) {
    const Scene scene = SampleScene(Hard(), 13, i);
    Random random(13, i);
    for (const Dialogue& dialogue :
         {questioner.Converse(scene, 4, random), questioner.ShortDialogue(scene, random)}) {
      for (const Turn& turn : dialogue) hash.Update(turn.question + turn.answer + "\n");
    }
  }
  EXPECT_EQ(ToHex(hash.Finish()).substr(0, 16), "59c0bd6e2be65bfe");
}

TEST(DialoguesTest, AskOnlyTheKindsThatAreNamed) {
  for (const auto& names : std::vector<std::vector<std::string>>{
           {"conversation"}, {"conversation", "detail"}, {"reasoning", "conversation"}}) {
    const InstructionKinds kinds = InstructionKinds::Named(names);
    const Questioner questioner(kSmallCategorySet, {{"Say it briefly."}, {}}, kinds);
    Random random(6);
    std::map<QuestionType, int> asked;
    for (int i = 0; i < 10000; ++i) {
      const Scene scene = SampleScene({}, 12, i);
      const Dialogue dialogue = i % 2 == 0 ? questioner.ShortDialogue(scene, random)
                                           : questioner.Converse(scene, 4, random);
      ASSERT_FALSE(dialogue.empty());
      ExpectTrue(scene, dialogue);
      for (const Turn& turn : dialogue) ++asked[turn.type];
    }
    for (int i = 0; i < kNumQuestionTypes; ++i) {
      const auto type = static_cast<QuestionType>(i);
      if (kinds.Has(type)) {
        EXPECT_GE(asked[type], 20) << NameOf(type);
      } else {
        EXPECT_EQ(asked[type], 0) << NameOf(type);
      }
    }
  }
}

TEST(DialoguesTest, NeedConversation) {
  const Questioner questioner(kSmallCategorySet, {},
                              {.conversation = false, .detail = true, .reasoning = true});
  const Scene scene = SampleScene({}, 12, 1);
  Random random(7);
  EXPECT_THROW(questioner.ShortDialogue(scene, random), std::invalid_argument);
  EXPECT_THROW(questioner.Converse(scene, 1, random), std::invalid_argument);
  EXPECT_THROW(questioner.AskChain(scene, random), std::invalid_argument);
  EXPECT_TRUE(questioner.AskOneOf(scene, ReasoningMixture(), random).has_value());
}

TEST(DialoguesTest, FactsNeedNoPicture) {
  const Questioner questioner(kLargeCategorySet);
  const Scene empty;
  Random random(5);
  std::map<QuestionType, std::map<std::string, int>> answers;
  for (int i = 0; i < 20000; ++i) {
    const Turn turn = questioner.AskFact(random);
    EXPECT_EQ(TruthChecker(empty).Fault(turn), "");
    ++answers[turn.type][turn.answer];
  }
  EXPECT_EQ(answers.size(), 5u);
  for (const QuestionType type : {kEat, kFly, kAlive}) {
    const double yes = answers[type]["Yes."], no = answers[type]["No."];
    EXPECT_NEAR(yes / (yes + no), 0.5, 0.05) << NameOf(type);
  }
}

}  // namespace
}  // namespace llava
