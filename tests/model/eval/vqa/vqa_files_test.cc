#include "model/eval/vqa/vqa_files.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

TEST(VqaFilesTest, ReadEveryLayout) {
  const TempFolder folder;
  const auto vqa = ReadVqaQuestions(
      folder.Write("vqa.json", R"({"annotations": [{"question_id": 3, "answer_type": "number",
          "answers": [{"answer": "2", "answer_id": 1}, {"answer": "two", "answer_id": 2}]}]})"),
      "answer_type");
  ASSERT_EQ(vqa.size(), 1);
  EXPECT_EQ(vqa[0].id, "3");
  EXPECT_THAT(vqa[0].answers, ElementsAre("2", "two"));
  EXPECT_EQ(vqa[0].group, "number");
  const auto lines = ReadVqaQuestions(folder.Write("a.jsonl",
                                                   "{\"question_id\": \"a\", \"answer\": \"x\"}\n"
                                                   "{\"question_id\": \"b\", \"label\": \"no\"}\n"),
                                      "");
  EXPECT_THAT(lines[0].answers, ElementsAre("x"));
  EXPECT_THAT(lines[1].answers, ElementsAre("no"));
  EXPECT_THAT(ReadVqaAnswers(folder.Write("r.json", R"([{"question_id": 1, "answer": "y"}])")),
              ElementsAre(Pair("1", "y")));
  EXPECT_THAT(ReadVqaAnswers(folder.Write("r.jsonl", R"({"question_id": 1, "text": "z"})")),
              ElementsAre(Pair("1", "z")));
}

TEST(VqaFilesTest, ReadGqasQuestionsById) {
  const TempFolder folder;
  const auto gqa = ReadVqaQuestions(
      folder.Write("gqa.json", R"({"05515938": {"question": "What is this bird called?",
          "imageId": "2405722", "answer": "parrot", "fullAnswer": "This is a parrot.",
          "types": {"structural": "query"}}, "05515939": {"question": "?", "answer": "no"}})"),
      "");
  ASSERT_EQ(gqa.size(), 2);
  EXPECT_EQ(gqa[0].id, "05515938");
  EXPECT_THAT(gqa[0].answers, ElementsAre("parrot"));
  const std::string bad = folder.Write("bad.json", R"({"7": {"question": "?"}})");
  EXPECT_THAT(ErrorOf([&] { ReadVqaQuestions(bad, ""); }), HasSubstr("bad.json question 7: "));
  // One line of JSON lines, as before.
  EXPECT_THAT(ErrorOf([&] { ReadVqaQuestions(folder.Write("l.jsonl", R"({"answer": "x"})"), ""); }),
              HasSubstr("l.jsonl:1: "));
}

TEST(VqaFilesTest, NameWhatIsWrong) {
  const TempFolder folder;
  const auto error = [&folder](const std::string& content) {
    const std::string path = folder.Write("q", content);
    return ErrorOf([&] { ReadVqaQuestions(path, ""); });
  };
  EXPECT_THAT(error(R"({"annotations": [{"question_id": 3, "answers": []}]})"),
              HasSubstr("q annotations record 0: \"answers\" is empty"));
  EXPECT_THAT(error(R"([{"question_id": 3, "answers": [3]}])"), HasSubstr("has 3, expected texts"));
  EXPECT_THAT(error(R"([{"question_id": 1, "answer": "a"}, 3])"),
              HasSubstr("record 1: is no JSON"));
  EXPECT_THAT(
      error("{\"question_id\": 1, \"answer\": \"a\"}\n{\"question_id\": 1, \"answer\": \"\"}"),
      HasSubstr("q:2: \"question_id\" comes for the second time"));
  EXPECT_THAT(error("{\"question_id\": 1, \"answer\": \"a\"}\n{\"question_id\":"),
              HasSubstr("q:2: no JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("has no questions"));
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_THAT(error(deep), HasSubstr("q:1: no JSON: has more than 200 levels"));
  EXPECT_THAT(error(R"({"annotations": [{"question_id": 3, "answers": )" + deep + "}]}"),
              HasSubstr("q:1: no JSON: has more than 200 levels"));
}

TEST(TextVqaFilesTest, AreJoinedByPictureAndQuestion) {
  const TempFolder folder;
  const auto questions = ReadVqaQuestions(
      folder.Write("t.json", R"({"data": [{"image_id": "im1", "question": "What Brand?",
          "question_id": 8, "answers": ["a", "b"]}]})"),
      "", true);
  EXPECT_EQ(questions[0].id, "im1\nwhat brand?");
  const std::string end = "\\nAnswer shortly.";
  const auto answers = ReadVqaAnswers(
      folder.Write("a.jsonl",
                   "{\"question_id\": \"im1\", \"prompt\": \"what brand?" + end +
                       "\", \"text\": \"a\"}\n{\"question_id\": \"im1\", \"prompt\": \"and?" + end +
                       "\", \"text\": \"b\"}\n"),
      true);
  EXPECT_THAT(answers, ElementsAre(Pair("im1\nand?", "b"), Pair("im1\nwhat brand?", "a")));
}

TEST(TextVqaFilesTest, FindTheQuestionOfAPrompt) {
  for (const char* prompt :
       {"What is it?\nAnswer shortly.", "What is it?\nReference OCR token: A, B\nAnswer shortly.",
        "Reference OCR token: A, B\nWhat is it?\nAnswer shortly.",
        "OCR tokens: A. Question: What is it? Short answer:", "What is it?"}) {
    EXPECT_EQ(QuestionOfTextVqaPrompt(prompt), "What is it?") << prompt;
    EXPECT_EQ(QuestionOfTextVqaPrompt(std::string("<image>\n") + prompt), "What is it?") << prompt;
  }
  EXPECT_EQ(QuestionOfTextVqaPrompt("Reference OCR token:"), "");
  EXPECT_EQ(QuestionOfTextVqaPrompt(""), "");
}

class PopeFilesTest : public testing::Test {
 protected:
  const TempFolder folder_;
  const std::vector<std::filesystem::path> labels_ = {
      folder_.Write(
          "coco_pope_random.json",
          "{\"question_id\": 1, \"label\": \"yes\"}\n{\"question_id\": 2, \"label\": \"no\"}\n"),
      folder_.Write("coco_pope_popular.json", "{\"question_id\": 3, \"label\": \"no\"}\n")};
};

TEST_F(PopeFilesTest, AreJoinedById) {
  const std::string answers = folder_.Write("answers.jsonl",
                                            "{\"question_id\": 2, \"text\": \"Yes\"}\n"
                                            "{\"question_id\": 3, \"text\": \"No\"}\n"
                                            "{\"question_id\": 1, \"text\": \"Yes\"}\n");
  const auto counts = CountPope(labels_, answers, "");
  ASSERT_EQ(counts.size(), 2);
  EXPECT_EQ(counts[0].first, "random");
  EXPECT_EQ(counts[0].second.true_yes, 1);
  EXPECT_EQ(counts[0].second.false_yes, 1);
  EXPECT_EQ(counts[1].second.true_no, 1);
  const std::string fewer =
      folder_.Write("fewer.jsonl", "{\"question_id\": 1, \"text\": \"Yes\"}\n");
  EXPECT_THAT(ErrorOf([&] { CountPope(labels_, fewer, ""); }),
              HasSubstr("no answer to question 2"));
}

TEST_F(PopeFilesTest, AreJoinedByOrderWithinACategory) {
  const std::string questions = folder_.Write("questions.jsonl",
                                              "{\"question_id\": 70, \"category\": \"popular\"}\n"
                                              "{\"question_id\": 71, \"category\": \"random\"}\n"
                                              "{\"question_id\": 72, \"category\": \"random\"}\n");
  const std::string answers = folder_.Write("answers.jsonl",
                                            "{\"question_id\": 71, \"text\": \"Yes\"}\n"
                                            "{\"question_id\": 70, \"text\": \"Yes\"}\n"
                                            "{\"question_id\": 72, \"text\": \"No\"}\n");
  // Several workers write answers as they come.
  const std::string turned = folder_.Write("turned.jsonl",
                                           "{\"question_id\": 72, \"text\": \"No\"}\n"
                                           "{\"question_id\": 71, \"text\": \"Yes\"}\n"
                                           "{\"question_id\": 70, \"text\": \"Yes\"}\n");
  for (const std::string& file : {answers, turned}) {
    const auto counts = CountPope(labels_, file, questions);
    EXPECT_EQ(counts[0].second.true_yes, 1) << file;
    EXPECT_EQ(counts[0].second.true_no, 1) << file;
    EXPECT_EQ(counts[1].second.false_yes, 1) << file;
  }
  const std::string fewer =
      folder_.Write("fewer.jsonl", "{\"question_id\": 71, \"text\": \"Yes\"}\n");
  EXPECT_THAT(ErrorOf([&] { CountPope(labels_, fewer, questions); }),
              HasSubstr("has no answer to question 72 of \"random\""));
  const std::string double_answer = folder_.Write("double.jsonl",
                                                  "{\"question_id\": 71, \"text\": \"Yes\"}\n"
                                                  "{\"question_id\": 71, \"text\": \"No\"}\n");
  EXPECT_THAT(ErrorOf([&] { CountPope(labels_, double_answer, questions); }),
              HasSubstr("double.jsonl:2: \"question_id\" is 71 for the second time"));
  const std::string one = folder_.Write("one.jsonl",
                                        "{\"question_id\": 70, \"category\": \"popular\"}\n"
                                        "{\"question_id\": 71, \"category\": \"random\"}\n");
  EXPECT_THAT(ErrorOf([&] { CountPope(labels_, fewer, one); }),
              HasSubstr("has 2 labels, " + one + " 1 questions of \"random\""));
  const std::string other =
      folder_.Write("other.jsonl", "{\"question_id\": 5, \"text\": \"Yes\"}\n");
  EXPECT_THAT(ErrorOf([&] { CountPope(labels_, other, questions); }), HasSubstr("no question 5"));
}

TEST_F(PopeFilesTest, NeedYesOrNoAsLabel) {
  const std::string bad = folder_.Write("bad.json", "{\"question_id\": 1, \"label\": \"Yes\"}\n");
  const std::string answers = folder_.Write("a.jsonl", "{\"question_id\": 1, \"text\": \"Yes\"}\n");
  EXPECT_THAT(ErrorOf([&] { CountPope({bad}, answers, ""); }),
              HasSubstr("bad.json:1: \"label\" is \"Yes\""));
}

}  // namespace
}  // namespace llava
