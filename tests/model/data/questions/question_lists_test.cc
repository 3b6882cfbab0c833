#include "model/data/questions/question_lists.h"
#include "tests/support/temp_folder.h"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

namespace llava {
namespace {

TEST(QuestionListsTest, HaveAsManyAsThePaper) {
  EXPECT_EQ(BriefQuestions().size(), 11u);
  EXPECT_EQ(DetailedQuestions().size(), 16u);
}

TEST(QuestionListsTest, NoQuestionComesTwice) {
  std::set<std::string> seen;
  for (const auto& list : {BriefQuestions(), DetailedQuestions()}) {
    for (const std::string& question : list) {
      EXPECT_TRUE(seen.insert(question).second) << question;
      EXPECT_TRUE(question.ends_with('.') || question.ends_with('?')) << question;
    }
  }
}

TEST(QuestionListsTest, ParsesLines) {
  EXPECT_EQ(ParseQuestionList("  One?\r\n\n\tTwo. \nThree", "x"),
            (std::vector<std::string>{"One?", "Two.", "Three"}));
}

TEST(QuestionListsTest, SaysWhatIsWrong) {
  const auto message = [](auto action) -> std::string {
    try {
      action();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message([] { ParseQuestionList("\n \n", "my.txt"); }),
            "my.txt: no questions, expected one a line");
  EXPECT_EQ(message([] { ParseQuestionList("a?\n<image> b?\n", "my.txt"); }),
            "my.txt:2: a question may not hold <image>: its place is added later");
  EXPECT_NE(message([] { BriefQuestions("/nowhere/q.txt"); }).find("/nowhere/q.txt"),
            std::string::npos);
}

TEST(QuestionListsTest, ReadsAFile) {
  const TempFolder folder;
  EXPECT_EQ(BriefQuestions(folder.Write("questions.txt", "Well?\n")),
            std::vector<std::string>{"Well?"});
}

}  // namespace
}  // namespace llava
