// llava-eval answer on LLaVA's questions of TextVQA, and vqa soft --textvqa on what it wrote.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/model/eval/eval_program.h"
#include "tests/support/chat_server.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
using Json = nlohmann::json;
using Asked = ChatServer::Asked;

const std::string kModels = SourceDir() + "/deploy/models/";
const std::string kScenes = SourceDir() + "/deploy/scenes/";

class TextVqaCommandTest : public testing::Test {
 protected:
  std::string Out() const { return " --out " + folder_.At("out.jsonl"); }
  std::vector<Json> Written() const {
    std::vector<Json> lines;
    std::istringstream stream(folder_.Read("out.jsonl"));
    for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
    return lines;
  }
  static std::string Line(const std::string& picture, const std::string& question) {
    return Json{{"question_id", picture},
                {"image", picture + ".png"},
                {"text", question + "\nReference OCR token: A\nAnswer shortly."}}
               .dump() +
           "\n";
  }
  std::string Accuracy() const {
    return Eval("vqa soft --textvqa --annotations " + annotations_ + " --answers " +
                folder_.At("out.jsonl") + " 2>&1")
        .output;
  }

  const TempFolder folder_;
  // Ids are those of the pictures, as in LLaVA's file.
  const std::string questions_ = folder_.Write(
      "textvqa.jsonl", Line("lion", "What is this?") + Line("two_apples", "How many are there?") +
                           Line("lion", "Is it a cat?"));
  const std::string annotations_ = folder_.Write("textvqa.json", R"({"data": [
      {"image_id": "lion", "question": "What is this?", "question_id": 1, "answers": ["x", "x", "x", "x"]},
      {"image_id": "two_apples", "question": "How many are there?", "question_id": 2,
       "answers": ["2", "two", "2", "2"]},
      {"image_id": "lion", "question": "Is it a cat?", "question_id": 3, "answers": ["y", "y", "y", "y"]}]})");
};

TEST_F(TextVqaCommandTest, AServersAnswersAreMeasured) {
  ChatServer server([](const Asked& asked) {
    const std::string body = asked.body.dump();
    if (body.find("What is this?") != std::string::npos) return ChatServer::Say("x");
    return ChatServer::Say(body.find("cat?") != std::string::npos ? "y" : "two");
  });
  const std::string command = "answer --questions " + questions_ + " --pictures " + kScenes +
                              " --base-url " + server.base_url() + " --model teacher" + Out() +
                              " 2>&1";
  const Outcome done = Eval(command);
  EXPECT_EQ(done.code, 0) << done.output;
  ASSERT_EQ(Written().size(), 3);
  EXPECT_EQ(Written()[0]["text"], "x");
  EXPECT_EQ(Written()[2]["text"], "y");
  EXPECT_THAT(Accuracy(), HasSubstr("soft accuracy             100.00 of 3 questions\n"));
  EXPECT_EQ(Eval(command).code, 0);
  EXPECT_EQ(server.num_asked(), 3);
}

TEST_F(TextVqaCommandTest, ACheckpointGoesOn) {
  const std::string command = "answer --questions " + questions_ + " --pictures " + kScenes +
                              " --checkpoint " + kModels + "emoji --tower " + kModels +
                              "emoji-tower --max-tokens 5" + Out();
  const Outcome first = Eval(command + " --limit 2 2>&1");
  EXPECT_EQ(first.code, 0) << first.output;
  ASSERT_EQ(Written().size(), 2);
  // In the order of the questions, whatever the order in which they were answered.
  const std::string two = folder_.Read("out.jsonl");
  const auto second_line = two.find('\n') + 1;
  folder_.Write("out.jsonl", two.substr(second_line) + two.substr(0, second_line));
  const Outcome rest = Eval(command + " 2>&1");
  EXPECT_EQ(rest.code, 0) << rest.output;
  ASSERT_EQ(Written().size(), 3);
  EXPECT_EQ(folder_.Read("out.jsonl").substr(0, two.size()), two);
  EXPECT_THAT(Written()[2]["prompt"].get<std::string>(), StartsWith("<image>\nIs it a cat?"));
  EXPECT_THAT(Accuracy(), testing::Not(HasSubstr("without an answer")));
  const Outcome other = Eval(command + " --template v1 2>&1");
  EXPECT_EQ(other.code, 2) << other.output;
  EXPECT_THAT(other.output, HasSubstr("3 answers are of another model"));
}

}  // namespace
}  // namespace llava
