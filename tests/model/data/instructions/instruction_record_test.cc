#include "model/data/instructions/instruction_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using Kind = BadRecordKind;
using testing::HasSubstr;

constexpr const char* kTurn =
    R"({"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"})";

std::string With(const std::string& conversations,
                 const std::string& rest = R"("image": "a.png")") {
  return R"({"id": "x", )" + rest + R"(, "conversations": [)" + conversations + "]}";
}

TEST(InstructionRecordTest, ReadsPictureAndText) {
  const InstructionRecord record = ParseInstructionRecord(
      With(std::string(kTurn) +
           R"(, {"from": "human", "value": "Q2"}, {"from": "gpt", "value": " A2 "})"));
  EXPECT_EQ(record.id, "x");
  EXPECT_THAT(record.images, testing::ElementsAre("a.png"));
  ASSERT_EQ(record.messages.size(), 4u);
  EXPECT_EQ(record.messages[0].text, "<image>\nQ");
  EXPECT_EQ(record.messages[0].num_images, 1);
  EXPECT_EQ(record.messages[2].num_images, 0);
  EXPECT_EQ(record.messages[3].role, ChatMessage::Role::kAssistant);
  EXPECT_EQ(record.messages[3].text, " A2 ");
}

TEST(InstructionRecordTest, ReadsTheFormsThatDataSetsHave) {
  const std::string text = R"({"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"})";
  for (const char* none : {R"("image": null)", R"("model": "gpt-4")", R"("image": [])"}) {
    EXPECT_TRUE(ParseInstructionRecord(With(text, none)).images.empty());
  }
  EXPECT_EQ(ParseInstructionRecord(R"({"id": 17, "conversations": [)" + text + "]}").id, "17");
  const std::string two =
      R"({"from": "human", "value": "<image> <image> Q"}, {"from": "gpt", "value": "A"})";
  const InstructionRecord record = ParseInstructionRecord(With(two, R"("image": ["a", "b"])"));
  EXPECT_THAT(record.images, testing::ElementsAre("a", "b"));
  EXPECT_EQ(record.messages[0].num_images, 2);
}

TEST(InstructionRecordTest, WithoutPicturesAMarkIsText) {
  const InstructionRecord record = ParseInstructionRecord(
      R"({"id": "x", "conversations": [{"from": "human", "value": "What is <image> in HTML?"},
          {"from": "gpt", "value": "No tag; <img> is."}, {"from": "human", "value": "<image>"},
          {"from": "gpt", "value": "Not <image>."}]})");
  EXPECT_EQ(record.messages.at(0).text, "What is <image> in HTML?");
  for (const ChatMessage& message : record.messages) EXPECT_EQ(message.num_images, 0);
  EXPECT_TRUE(record.images.empty());
}

struct Bad {
  std::string json;
  Kind kind;
  const char* says;
};

TEST(InstructionRecordTest, SaysWhatIsWrong) {
  const std::string turn = kTurn;
  const std::vector<Bad> all = {
      {"{", Kind::kSyntax, "parse error"},
      {"{\"id\": \"\xff\"}", Kind::kSyntax, "UTF-8"},
      {"", Kind::kSyntax, "parse error"},
      {R"({"id": 1e999})", Kind::kSyntax, "number overflow"},
      {With(turn, R"("more": )" + std::string(100'000, '[') + std::string(100'000, ']')),
       Kind::kSyntax, "more than 200 levels"},
      {"[1]", Kind::kKeys, "is [1], expected an object"},
      {R"({"conversations": []})", Kind::kKeys, "has no \"id\""},
      {R"({"id": "x"})", Kind::kKeys, "has no \"conversations\""},
      {R"({"id": [], "conversations": []})", Kind::kKeys, "\"id\" is [], expected a text"},
      {R"({"id": "x", "conversations": "none"})", Kind::kKeys, "expected an array"},
      {With(turn, R"("image": 5)"), Kind::kKeys, "\"image\" is 5, expected a text"},
      {With("7"), Kind::kKeys, "message 1 is 7, expected an object"},
      {With(R"({"value": "Q"})"), Kind::kKeys, "message 1 has no \"from\""},
      {With(R"({"from": "human"})"), Kind::kKeys, "message 1 has no \"value\""},
      {With(R"({"from": "human", "value": 3})"), Kind::kKeys, "\"value\" of message 1 is 3"},
      {With(""), Kind::kRoles, "has 0 messages"},
      {With(R"({"from": "gpt", "value": "A"})"), Kind::kRoles,
       "message 1 is from \"gpt\", expected \"human\""},
      {With(turn + R"(, {"from": "gpt", "value": "A"})"), Kind::kRoles,
       "message 3 is from \"gpt\""},
      {With(turn + R"(, {"from": "human", "value": "Q"})"), Kind::kRoles, "has 3 messages"},
      {With(R"({"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"})"), Kind::kImageMarks,
       "hold <image> 0 times, the record has 1 picture"},
      {With(turn, R"("image": null)"), Kind::kImageMarks,
       "hold <image> 1 time, the record has 0 pictures"},
      {With(turn + "," + turn), Kind::kImageMarks, "hold <image> 2 times"},
      {With(R"({"from": "human", "value": "<image>"}, {"from": "gpt", "value": "an <image>"})"),
       Kind::kImageMarks, "message 2, an answer, holds <image>"},
      {With(R"({"from": "human", "value": "<image>"}, {"from": "gpt", "value": " \n"})"),
       Kind::kEmptyText, "message 2, an answer, is empty"},
      {With(R"({"from": "human", "value": ""}, {"from": "gpt", "value": "A"})"), Kind::kEmptyText,
       "message 1, a question, is empty"},
  };
  for (const Bad& bad : all) {
    try {
      ParseInstructionRecord(bad.json);
      ADD_FAILURE() << bad.json;
    } catch (const BadRecord& error) {
      EXPECT_EQ(error.kind(), bad.kind) << bad.json << ": " << error.what();
      EXPECT_THAT(error.what(), HasSubstr(bad.says));
    }
  }
}

TEST(InstructionRecordTest, CutsLongValuesBetweenCharacters) {
  std::string many;
  for (int i = 0; i < 50; ++i) many += "é";
  try {
    ParseInstructionRecord("[\"" + many + "\"]");
    FAIL();
  } catch (const BadRecord& error) {
    const std::string what = error.what();
    EXPECT_THAT(what, HasSubstr("é..., expected an object"));
  }
}

}  // namespace
}  // namespace llava
