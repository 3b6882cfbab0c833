#include "model/eval/marks.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace llava {
namespace {

using enum QuestionType;

TEST(WilsonIntervalTest, KnownValues) {
  // From Brown, Cai, DasGupta (2001) and statsmodels' proportion_confint(method="wilson").
  const Interval half = WilsonInterval({50, 100});
  EXPECT_NEAR(half.low, 0.403832, 1e-6);
  EXPECT_NEAR(half.high, 0.596168, 1e-6);
  const Interval none = WilsonInterval({0, 10});
  EXPECT_NEAR(none.low, 0, 1e-12);
  EXPECT_NEAR(none.high, 0.277533, 1e-6);
  const Interval all = WilsonInterval({500, 500});
  EXPECT_NEAR(all.low, 0.992376, 1e-6);
  EXPECT_NEAR(all.high, 1, 1e-12);
  EXPECT_EQ(WilsonInterval({0, 0}).low, 0);
  EXPECT_EQ(WilsonInterval({0, 0}).high, 1);
}

Exam SmallExam(uint64_t seed = 1) {
  ExamOptions options;
  options.per_type = 40;
  options.seed = seed;
  return MakeExam(options);
}

// Knows the right answers of an exam; `wrong`: a type whose questions it answers with nonsense.
class Crammer : public Examinee {
 public:
  Crammer(const Exam& exam, std::optional<QuestionType> wrong) {
    for (const ExamScene& scene : exam) {
      for (const ExamDialogue& dialogue : scene.dialogues) {
        std::string said = Name(scene.scene);
        for (const Turn& turn : dialogue.turns) {
          said += "|" + turn.question;
          answers_[said] = turn.type == wrong ? "I cannot say." : turn.answer;
        }
      }
    }
  }
  void Show(const Scene& scene) override { scene_ = Name(scene); }
  void Begin() override { said_ = scene_; }
  std::string Answer(const std::string& question) override {
    said_ += "|" + question;
    return answers_.at(said_);
  }

 private:
  static std::string Name(const Scene& scene) { return std::to_string(scene.render_seed); }

  std::map<std::string, std::string> answers_;  // by scene and questions so far
  std::string scene_, said_;
};

Marks MarksOf(const Exam& exam, std::optional<QuestionType> wrong, int threads) {
  return Examine(
      exam, [&] { return std::make_unique<Crammer>(exam, wrong); }, threads);
}

TEST(ExamineTest, OneWhoKnowsEverythingIsRightEverywhere) {
  const Exam exam = SmallExam();
  const Marks marks = MarksOf(exam, std::nullopt, 2);
  for (int i = 0; i < kNumQuestionTypes; ++i) {
    const auto type = static_cast<QuestionType>(i);
    if (type == kBrief) continue;  // no wordings
    EXPECT_EQ(marks.Of(type), (Share{40, 40})) << NameOf(type);
  }
  EXPECT_EQ(marks.chains, (Share{40, 40}));
}

TEST(ExamineTest, AWrongTurnSpoilsItsTypeAndItsChainsOnly) {
  const Exam exam = SmallExam();
  const Marks marks = MarksOf(exam, kFollowEat, 1);
  EXPECT_EQ(marks.Of(kFollowEat), (Share{0, 40}));
  EXPECT_EQ(marks.Of(kFollowKind), (Share{40, 40}));
  EXPECT_EQ(marks.Of(kEat), (Share{40, 40}));
  int64_t spoilt = 0;
  for (const ExamScene& scene : exam) {
    for (const ExamDialogue& dialogue : scene.dialogues) {
      bool eats = false;
      for (const Turn& turn : dialogue.turns) eats |= turn.type == kFollowEat;
      spoilt += dialogue.whole && eats;
    }
  }
  EXPECT_GT(spoilt, 0);
  EXPECT_EQ(marks.chains, (Share{40 - spoilt, 40}));
}

TEST(ExamineTest, ThreadsDoNotMatterAndStayAsTheyWere) {
  const Exam exam = SmallExam();
  const int before = at::get_num_threads();
  EXPECT_EQ(MarksOf(exam, kWhat, 1), MarksOf(exam, kWhat, 3));
  EXPECT_EQ(at::get_num_threads(), before);
}

TEST(ExamineTest, TellsHowManyTurnsWereAnswered) {
  const Exam exam = SmallExam();
  int64_t turns = 0;
  Examine(
      exam, [&] { return std::make_unique<Crammer>(exam, std::nullopt); }, 3,
      [&](int64_t answered) { turns += answered; });
  EXPECT_EQ(turns, NumTurns(exam));
  EXPECT_GT(turns, 29 * 40);
}

TEST(ExamineTest, TellsEveryWrongAnswerThatCounts) {
  const Exam exam = SmallExam();
  int mistakes = 0;
  const Marks marks = Examine(
      exam, [&] { return std::make_unique<Crammer>(exam, kWhat); }, 3, {},
      [&](const Scene& scene, const Turn& turn, const std::string& given) {
        ++mistakes;
        EXPECT_FALSE(scene.objects.empty());
        EXPECT_EQ(turn.type, kWhat);
        EXPECT_EQ(given, "I cannot say.");
      });
  EXPECT_EQ(mistakes, marks.Of(kWhat).asked - marks.Of(kWhat).right);
  EXPECT_GT(mistakes, 0);
}

TEST(ExamineTest, PassesErrorsOn) {
  const Exam exam = SmallExam();
  const Exam other = SmallExam(2);  // questions that it never learned
  EXPECT_THROW(Examine(
                   exam, [&] { return std::make_unique<Crammer>(other, std::nullopt); }, 2),
               std::out_of_range);
}

// One dialogue of one turn a question.
Exam ExamOf(QuestionType type, const std::vector<std::string>& answers) {
  Exam exam(1);
  for (const std::string& answer : answers) {
    exam[0].dialogues.push_back({{{type, "?", answer}}, {true}, false});
  }
  return exam;
}

TEST(MarkCommonestAnswersTest, TakesTheAnswerThatIsCommonestInPractice) {
  const Exam practice = ExamOf(kColour, {"It is red.", "It is blue.", "It is blue."});
  const Exam exam = ExamOf(kColour, {"It is red.", "Blue.", "It is red.", "It is green."});
  const Marks marks = MarkCommonestAnswers(exam, practice);
  EXPECT_EQ(marks.Of(kColour), (Share{1, 4}));
}

TEST(MarkCommonestAnswersTest, IsNoBetterThanChanceOnABalancedExam) {
  const Marks marks = MarkCommonestAnswers(SmallExam(1), SmallExam(2));
  EXPECT_EQ(marks.Of(kExist), (Share{20, 40}));
  EXPECT_EQ(marks.Of(kSideOf), (Share{20, 40}));
  EXPECT_EQ(marks.Of(kCount), (Share{10, 40}));
  EXPECT_LT(marks.Of(kWhat).right, 8);
  EXPECT_LT(marks.chains.right, 8);
}

}  // namespace
}  // namespace llava
