#include "model/eval/scienceqa/prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/eval/scienceqa/sample_problems.h"
#include "tests/support/error_of.h"

namespace llava {
namespace {

using testing::HasSubstr;

ScienceProblem Bird() {
  ScienceProblem problem;
  problem.id = "1";
  problem.question = "Which is a bird?";
  problem.choices = {"cod", "wren"};
  problem.answer = 1;
  problem.image = "image.png";
  problem.lecture = "LL";
  problem.solution = "EE";
  return problem;
}

TEST(ScienceFormatTest, TellsEveryInput) {
  const std::string q = "Which is a bird?\n", c = "Context: N/A\n", m = "Options: (A) cod (B) wren";
  const std::pair<const char*, std::string> cases[] = {
      {"QCM", q + c + m},
      {"CQM", c + "Question: " + q + m},
      {"QCML", q + c + m + "\nBECAUSE: LL"},
      {"QCME", q + c + m + "\nBECAUSE: EE"},
      {"QCMLE", q + c + m + "\nBECAUSE: LL EE"},
      {"QCLM", q + c + "BECAUSE: LL\n" + m},
      {"QCEM", q + c + "BECAUSE: EE\n" + m},
      {"QCLEM", q + c + "BECAUSE: LL EE\n" + m},
  };
  for (const auto& [name, text] : cases) {
    EXPECT_EQ(ScienceFormat(std::string(name) + "-A").Question(Bird()), text) << name;
  }
}

TEST(ScienceFormatTest, TellsEveryOutput) {
  const std::pair<const char*, const char*> cases[] = {
      {"A", "The answer is B."},
      {"AL", "The answer is B. BECAUSE: EE"},  // exchanged, as published
      {"AE", "The answer is B. BECAUSE: LL"},
      {"ALE", "The answer is B. BECAUSE: LL EE"},
      {"AEL", "The answer is B. BECAUSE: EE LL"},
      {"LA", "LL The answer is B."},
      {"EA", "EE The answer is B."},
      {"LEA", "LL EE The answer is B."},
      {"ELA", "EE LL The answer is B."},
      {"LEPA", "LECTURE: LL\nSOLUTION: EE\n###\nANSWER: B."},
  };
  for (const auto& [name, text] : cases) {
    EXPECT_EQ(ScienceFormat(std::string("QCM-") + name).Answer(Bird()), text) << name;
  }
}

TEST(ScienceFormatTest, LeavesOutWhatIsNotThere) {
  ScienceProblem problem = Bird();
  problem.lecture = "";
  problem.solution = "";
  EXPECT_EQ(ScienceFormat("QCM-ALE").Answer(problem), "The answer is B.");
  // Three spaces had become two, and one of them went with the prefix.
  EXPECT_EQ(ScienceFormat("QCM-LEA").Answer(problem), " The answer is B.");
  EXPECT_EQ(ScienceFormat("QCM-LEPA").Answer(problem), "###\nANSWER: B.");
  problem.solution = " ";
  EXPECT_EQ(ScienceFormat("QCM-LEPA").Answer(problem), "###\nANSWER: B.");
  EXPECT_EQ(ScienceFormat("QCML-A").Question(problem),
            "Which is a bird?\nContext: N/A\nOptions: (A) cod (B) wren");
  problem.solution = "EE";
  EXPECT_EQ(ScienceFormat("QCM-LEA").Answer(problem), "EE The answer is B.");
  EXPECT_EQ(ScienceFormat("QCM-LEPA").Answer(problem), "SOLUTION: EE\n###\nANSWER: B.");
}

TEST(ScienceFormatTest, HasTheWaysOfThePublishedConverter) {
  ScienceProblem problem = Bird();
  problem.question = "Read  this    text. Question: why?";
  problem.hint = "A   hint ";
  problem.caption = "a bird";
  problem.lecture = "one\\ntwo\nAnswer: three";
  // Each two spaces become one, once, and "Question: " goes wherever it stands.
  EXPECT_EQ(ScienceFormat("QCM-A").Question(problem),
            "Read this  text. why?\nContext: A  hint a bird\nOptions: (A) cod (B) wren");
  EXPECT_EQ(ScienceFormat("QCM-LA").Answer(problem), "one\ntwo\nthree The answer is B.");
  EXPECT_EQ(ScienceFormat("CQM-A").Question(problem),
            "Context: A  hint a bird\nQuestion: Read this  text. Question: why?\n"
            "Options: (A) cod (B) wren");
}

TEST(ScienceFormatTest, TellsWhatStandsBeforeTheLetter) {
  EXPECT_EQ(ScienceFormat("QCM-LEPA").answer_cue(), "###\nANSWER:");
  EXPECT_EQ(ScienceFormat("QCM-LEA").answer_cue(), "");
}

TEST(ScienceFormatTest, ListsTheFormatsThereAre) {
  for (const char* name : {"", "QCM", "QCM-", "-A", "MCQ-A", "QCM-LAE", "QCM-A-B"}) {
    EXPECT_THAT(ErrorOf([&] { ScienceFormat{name}; }),
                HasSubstr("one of QCM CQM QCML QCME QCMLE QCLM QCEM QCLEM, a -, and one of A AL"))
        << name;
  }
}

TEST(ScienceRecordTest, IsInstructionData) {
  const ScienceFormat format("QCM-A");
  EXPECT_EQ(ScienceRecord(Bird(), format).dump(),
            R"({"id":"1","image":"1/image.png","conversations":[)"
            R"({"from":"human","value":"Which is a bird?\nContext: N/A\n)"
            R"(Options: (A) cod (B) wren\n<image>"},{"from":"gpt","value":"The answer is B."}]})");
  ScienceProblem text = Bird();
  text.image = "";
  EXPECT_EQ(ScienceInstruction(text, format).dump(),
            R"({"id":"1","instruction":"Which is a bird?\nContext: N/A\n)"
            R"(Options: (A) cod (B) wren","output":"The answer is B."})");
}

TEST(ScienceRecordTest, AsksForALetter) {
  EXPECT_EQ(ScienceLetterRecord(Bird(), "Only the letter.").dump(),
            R"({"id":"1","image":"1/image.png","conversations":[{"from":"human","value":)"
            R"("<image>\nWhich is a bird?\nA. cod\nB. wren\nOnly the letter."},)"
            R"({"from":"gpt","value":"B"}]})");
  ScienceProblem text = Bird();
  text.image = "";
  text.hint = "Look.";
  EXPECT_EQ(ScienceLetterRecord(text, "")["conversations"][0]["value"],
            "Context: Look.\nWhich is a bird?\nA. cod\nB. wren");
}

TEST(ScienceSentenceTest, IsHowReasonsEnd) {
  EXPECT_EQ(ScienceSentence("LECTURE: LL\nSOLUTION: EE\n###\nANSWER: B."),
            "LECTURE: LL\nSOLUTION: EE\n The answer is B.");
  EXPECT_EQ(ScienceSentence("###\nANSWER: B."), "\n The answer is B.");
  EXPECT_EQ(ScienceSentence("The answer is B."), "The answer is B.");
}

TEST(ScienceChatTest, ShowsExamplesFirst) {
  ScienceProblem shot = Bird();
  shot.question = "Which is a fish?";
  shot.answer = 0;
  const auto messages = ScienceChat(Bird(), {shot}, ScienceFormat("QCM-A"));
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0]["role"], "system");
  EXPECT_THAT(messages[1]["content"].get<std::string>(), HasSubstr("\nWhich is a fish?\n"));
  EXPECT_EQ(messages[2]["role"], "assistant");
  EXPECT_EQ(messages[2]["content"], "The answer is A.");
  EXPECT_EQ(messages[3]["role"], "user");
  EXPECT_THAT(messages[3]["content"].get<std::string>(), HasSubstr("\nWhich is a bird?\n"));
}

}  // namespace
}  // namespace llava
