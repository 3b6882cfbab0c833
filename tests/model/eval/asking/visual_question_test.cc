#include "model/eval/asking/visual_question.h"
#include "model/eval/asking/local_model.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(VisualQuestionsTest, ComeFromLines) {
  const TempFolder folder;
  const auto questions = ReadVisualQuestions(
      folder.Write("q.jsonl",
                   "{\"question_id\": 7, \"image\": \"a.png\", \"text\": \"<image>\\nWhat?\"}\n"
                   "{\"question_id\": \"b\", \"text\": \"Why?\"}\n"),
      "/pictures");
  ASSERT_EQ(questions.size(), 2);
  EXPECT_EQ(questions[0].name(), "7");
  EXPECT_TRUE(questions[0].id.is_number());
  EXPECT_EQ(questions[0].picture, "/pictures/a.png");
  EXPECT_EQ(questions[0].text, "What?");
  EXPECT_EQ(questions[1].name(), "b");
  EXPECT_TRUE(questions[1].picture.empty());
}

TEST(VisualQuestionsTest, ComeFromInstructionData) {
  const TempFolder folder;
  const auto questions =
      ReadVisualQuestions(folder.Write("q.json",
                                       R"([{"id": "3", "image": "3/image.png", "conversations": [
                         {"from": "human", "value": "What is it?\n<image>"},
                         {"from": "gpt", "value": "A cat."}]},
                         {"id": 4, "conversations": [{"from": "human", "value": "Why <image>?"},
                         {"from": "gpt", "value": "So."}]}])"),
                          "test");
  ASSERT_EQ(questions.size(), 2);
  EXPECT_EQ(questions[1].text, "Why <image>?");
  EXPECT_EQ(questions[0].name(), "3");
  EXPECT_EQ(questions[0].text, "What is it?");
  EXPECT_EQ(questions[0].picture, "test/3/image.png");
}

// LLaVA's questions of TextVQA carry the id of their picture, its instruction data that of COCO.
TEST(VisualQuestionsTest, MayShareAnId) {
  const TempFolder folder;
  const auto questions = ReadVisualQuestions(
      folder.Write("q.jsonl", R"({"question_id": "a", "image": "a.png", "text": "Who?"})"
                              "\n"
                              R"({"question_id": "b", "text": "Why?"})"
                              "\n"
                              R"({"question_id": "a", "image": "a.png", "text": "When?"})"
                              "\n"),
      "");
  ASSERT_EQ(questions.size(), 3);
  EXPECT_EQ(questions[0].name(), "a \"<image>\nWho?\"");
  EXPECT_EQ(questions[1].name(), "b");
  EXPECT_EQ(questions[2].name(), "a \"<image>\nWhen?\"");
  const auto line = AnswerLine(questions[2], "Now.", "emoji", "stop");
  EXPECT_EQ(line["question_id"], "a");
  EXPECT_EQ(NameOfAnswer("a", line["prompt"].get<std::string>(), true), questions[2].name());
}

TEST(VisualQuestionsTest, AreNamedWhereTheyAreWrong) {
  const TempFolder folder;
  const auto error = [&folder](const std::string& content) {
    const std::string path = folder.Write("q", content);
    return ErrorOf([&] { ReadVisualQuestions(path, ""); });
  };
  EXPECT_THAT(error("{\"question_id\": 1, \"text\": \"a\"}\n{\"question_id\": 2}"),
              HasSubstr("q:2: \"text\" is missing"));
  EXPECT_THAT(error("{\"question_id\": 1, \"text\": \"a\"}\n{\"question_id\": 1, \"text\": \"a\"}"),
              HasSubstr("question 1 \"a\" comes twice"));
  EXPECT_THAT(error(R"([{"id": "3", "conversations": []}])"), HasSubstr("q record 0: "));
  EXPECT_THAT(error("[]"), HasSubstr("has no questions"));
}

TEST(AnswerLineTest, IsWhatLlavaWrites) {
  const VisualQuestion question{.id = 7, .text = "What?", .picture = "a.png", .messages = {}};
  const auto line = AnswerLine(question, "A cat.", "emoji", "stop");
  EXPECT_EQ(line["question_id"], 7);
  EXPECT_EQ(line["prompt"], "<image>\nWhat?");
  EXPECT_EQ(line["text"], "A cat.");
  EXPECT_EQ(line["model_id"], "emoji");
  EXPECT_EQ(line["answer_id"].get<std::string>().size(), 22);
  EXPECT_NE(line["answer_id"], AnswerLine(question, "A dog.", "emoji", "stop")["answer_id"]);
}

TEST(BeforeChoiceTest, IsAsInTheTrainingData) {
  EXPECT_EQ(BeforeChoice(" LECTURE: x\n", "###\nANSWER:"), "LECTURE: x\n###\nANSWER:");
  EXPECT_EQ(BeforeChoice("\n", "###\nANSWER:"), "###\nANSWER:");
}

TEST(PictureUrlTest, CarriesThePicture) {
  const TempFolder folder;
  EXPECT_EQ(PictureUrl(folder.Write("a", "BM")), "data:image/bmp;base64,Qk0=");
  EXPECT_EQ(PictureUrl(folder.Write("b", "BM!")), "data:image/bmp;base64,Qk0h");
  EXPECT_EQ(PictureUrl(folder.Write("c", "BM\xFF\xFE")), "data:image/bmp;base64,Qk3//g==");
  EXPECT_THAT(PictureUrl(folder.Write("d", "\x89PNG\r\n\x1A\n")), StartsWith("data:image/png;"));
  EXPECT_THAT(PictureUrl(folder.Write("e", "\xFF\xD8\xFF\xE0")), StartsWith("data:image/jpeg;"));
  EXPECT_THAT(PictureUrl(folder.Write("f", "RIFF1234WEBP")), StartsWith("data:image/webp;"));
  EXPECT_THAT(ErrorOf([&] { PictureUrl(folder.Write("g", "GIF89a")); }), HasSubstr("is no JPEG"));
  EXPECT_THAT(ErrorOf([] { PictureUrl("/nowhere/x.png"); }), HasSubstr("/nowhere/x.png"));
}

TEST(VisualQuestionsTest, ANestThatIsTooDeepIsNamed) {
  const TempFolder folder;
  const std::string path = folder.Write(
      "q.json", "[{\"id\": " + std::string(100'000, '[') + std::string(100'000, ']') + "}]");
  EXPECT_THAT(ErrorOf([&] { ReadVisualQuestions(path, ""); }),
              HasSubstr("q.json:1: no JSON: has more than 200 levels"));
}

}  // namespace
}  // namespace llava
