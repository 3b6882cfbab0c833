#include "model/eval/exam.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <stdexcept>
#include <string>

namespace llava {
namespace {

using enum QuestionType;

// Counted questions of each type by their answer.
std::map<QuestionType, std::map<std::string, int>> Answers(const Exam& exam) {
  std::map<QuestionType, std::map<std::string, int>> answers;
  for (const ExamScene& scene : exam) {
    for (const ExamDialogue& dialogue : scene.dialogues) {
      EXPECT_EQ(dialogue.turns.size(), dialogue.counted.size());
      for (size_t i = 0; i < dialogue.turns.size(); ++i) {
        if (dialogue.counted[i]) ++answers[dialogue.turns[i].type][dialogue.turns[i].answer];
      }
    }
  }
  return answers;
}

int Total(const std::map<std::string, int>& answers) {
  int total = 0;
  for (const auto& [answer, count] : answers) total += count;
  return total;
}

ExamOptions Options(int per_type) {
  ExamOptions options;
  options.per_type = per_type;
  options.wordings.brief = {"Say briefly what is there."};
  return options;
}

TEST(ExamTest, AsksEveryTypeEquallyOften) {
  const Exam exam = MakeExam(Options(60));
  const auto answers = Answers(exam);
  EXPECT_EQ(answers.size(), static_cast<size_t>(kNumQuestionTypes));
  for (const auto& [type, of_type] : answers) EXPECT_EQ(Total(of_type), 60) << NameOf(type);
  int chains = 0;
  for (const ExamScene& scene : exam) {
    for (const ExamDialogue& dialogue : scene.dialogues) chains += dialogue.whole;
  }
  EXPECT_EQ(chains, 60);
}

TEST(ExamTest, BalancesTheAnswersOfTypesThatHaveFew) {
  const auto answers = Answers(MakeExam(Options(60)));
  for (const QuestionType type : {kExist, kEat, kFly, kAlive, kSame, kFollowEat, kFollowFly}) {
    EXPECT_EQ(answers.at(type).at("Yes."), 30) << NameOf(type);
    EXPECT_EQ(answers.at(type).at("No."), 30) << NameOf(type);
  }
  EXPECT_EQ(answers.at(kSideOf).at("On the left."), 30);
  EXPECT_EQ(answers.at(kAbove).at("Below."), 30);
  for (const QuestionType type : {kCount, kGroupCount, kFollowCount}) {
    for (const char* number : {"None.", "One.", "Two.", "Three."}) {
      EXPECT_EQ(answers.at(type).at(number), 15) << NameOf(type) << number;
    }
  }
}

TEST(ExamTest, AsksNoTypeTwiceAboutAScene) {
  for (const ExamScene& scene : MakeExam(Options(40))) {
    std::set<QuestionType> types;
    for (const ExamDialogue& dialogue : scene.dialogues) {
      if (dialogue.turns.size() > 1) continue;
      EXPECT_TRUE(types.insert(dialogue.turns[0].type).second);
    }
  }
}

TEST(ExamTest, IsAFunctionOfItsOptions) {
  const auto questions = [](uint64_t seed) {
    ExamOptions options = Options(10);
    options.seed = seed;
    std::string all;
    for (const ExamScene& scene : MakeExam(options)) {
      for (const ExamDialogue& dialogue : scene.dialogues) {
        for (const Turn& turn : dialogue.turns) all += turn.question + turn.answer;
      }
    }
    return all;
  };
  EXPECT_EQ(questions(1), questions(1));
  EXPECT_NE(questions(1), questions(2));
}

TEST(ExamTest, UsesNoSceneOfTrainingWithTheSameSeed) {
  const ExamOptions options = Options(20);
  const Exam exam = MakeExam(options);
  std::set<uint64_t> trained;
  for (uint64_t i = 0; i < 20'000; ++i) {
    trained.insert(SampleScene(options.scenes, options.seed, i).render_seed);
  }
  for (const ExamScene& scene : exam) EXPECT_FALSE(trained.contains(scene.scene.render_seed));
}

TEST(ExamTest, LeavesOutWhatTheScenesDoNotAllow) {
  ExamOptions options = Options(10);
  options.wordings.brief.clear();
  options.scenes.min_objects = 2;
  auto answers = Answers(MakeExam(options));
  EXPECT_FALSE(answers.contains(kThis));
  EXPECT_FALSE(answers.contains(kBrief));
  EXPECT_EQ(Total(answers[kWhat]), 10);

  options.scenes.min_objects = options.scenes.max_objects = 1;
  answers = Answers(MakeExam(options));
  EXPECT_FALSE(answers.contains(kSideOf));
  EXPECT_EQ(answers[kTotal]["One."], 10);
}

TEST(ExamTest, FillsUpWhereAnAnswerDoesNotOccur) {
  // With a held-out pair among three things, no kind stands there three times.
  ExamOptions options = Options(20);
  options.scenes.held_out = SceneOptions::HeldOut::kPairs;
  auto answers = Answers(MakeExam(options));
  EXPECT_FALSE(answers[kCount].contains("Three."));
  EXPECT_EQ(Total(answers[kCount]), 20);
}

TEST(ExamTest, RefusesWrongOptions) {
  EXPECT_THROW(MakeExam(Options(0)), std::invalid_argument);
  ExamOptions options = Options(10);
  options.scenes.max_objects = 9;
  EXPECT_THROW(MakeExam(options), std::invalid_argument);
}

}  // namespace
}  // namespace llava
