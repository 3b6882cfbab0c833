// llava-eval scienceqa as a program.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/model/eval/eval_program.h"
#include "tests/model/eval/scienceqa/sample_problems.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
using Json = nlohmann::json;

class ScienceQaCommandTest : public testing::Test {
 protected:
  Outcome Run(const std::string& command, const std::string& flags) const {
    return Eval("scienceqa " + command + " --problems " + problems_ + " --splits " + splits_ + " " +
                flags + " 2>&1");
  }

  const TempFolder folder_;
  const std::string problems_ = folder_.Write("problems.json", SampleProblems());
  const std::string splits_ = folder_.Write("splits.json", SampleSplits());
};

TEST_F(ScienceQaCommandTest, ScoresAResultFile) {
  const std::string file = folder_.Write("result.json", R"({"acc": 25.0, "correct": 1, "count": 4,
      "results": {"10": 3, "1": 1, "2": -1, "3": 1},
      "outputs": {"10": "D", "1": "B", "2": "ANSWER: A.", "3": "B"}})");
  const Outcome table = Run("score", "--predictions " + file);
  EXPECT_EQ(table.code, 0) << table.output;
  EXPECT_THAT(table.output, HasSubstr("100.00   0.00   0.00 |   0.00  50.00 100.00 | 100.00   0.00 "
                                      "|  50.00\n"));
  EXPECT_THAT(table.output, HasSubstr("the file says of itself that 1 are right, its answers are "
                                      "right 2 times\n"));
  EXPECT_THAT(table.output, HasSubstr("would find an answer in 1 of them, right in 1\n"));
  const Outcome told = Run("score", "--json --predictions " + file);
  EXPECT_EQ(told.code, 0);
  const Json json = Json::parse(told.output);
  EXPECT_EQ(json["kind"], "scienceqa");
  EXPECT_EQ(json["classes"]["AVG"]["acc"], 50.0);
  EXPECT_EQ(json["failures"]["unread"], 1);
  EXPECT_EQ(json["stated_correct"], 1);
  EXPECT_EQ(json["lenient"]["right"], 1);
  const Outcome lenient = Run("score", "--json --texts --lenient --predictions " + file);
  EXPECT_EQ(Json::parse(lenient.output)["classes"]["AVG"]["acc"], 75.0);
}

TEST_F(ScienceQaCommandTest, AddsASecondModel) {
  const std::string own = folder_.Write("own.jsonl",
                                        "{\"question_id\": \"10\", \"text\": \"A\"}\n"
                                        "{\"question_id\": \"1\", \"text\": \"B\"}\n"
                                        "{\"question_id\": \"2\", \"text\": \"B\"}\n"
                                        "{\"question_id\": \"3\", \"text\": \"A\"}\n");
  const std::string second = folder_.Write(
      "second.json",
      R"({"outputs": {"10": "The answer is D.", "1": "I cannot see it.", "2": "The answer is A.",
          "3": "The answer is B."}})");
  const std::string verdicts =
      folder_.Write("verdicts.jsonl",
                    "{\"question_id\": \"10\", \"text\": \"Both err. The answer is D.\"}\n"
                    "{\"question_id\": \"2\", \"text\": \"Hm\"}\n");
  const Outcome told = Run(
      "score", "--json --predictions " + own + " --second " + second + " --verdicts " + verdicts);
  EXPECT_EQ(told.code, 0) << told.output;
  const Json json = Json::parse(told.output);
  EXPECT_EQ(json["classes"]["AVG"]["right"], 2);                // 1, 3
  EXPECT_EQ(json["second"]["classes"]["AVG"]["right"], 2);      // 10, 2
  EXPECT_EQ(json["complement"]["classes"]["AVG"]["right"], 3);  // 10, 1, 2
  EXPECT_EQ(json["judge"]["classes"]["AVG"]["right"], 3);       // 10, 1, 3
  EXPECT_EQ(json["either_right"]["right"], 4);
  EXPECT_EQ(Run("score", "--predictions " + own + " --verdicts " + verdicts).code, 2);
}

TEST_F(ScienceQaCommandTest, ConvertsToInstructionData) {
  const Outcome done =
      Run("convert", "--split train --format QCM-LEPA --out " + folder_.At("out.json"));
  EXPECT_EQ(done.code, 0) << done.output;
  // As Python's json module writes with an indent of 2.
  EXPECT_EQ(folder_.Read("out.json"), R"([
  {
    "id": "7",
    "conversations": [
      {
        "from": "human",
        "value": "Does ice float?\nContext: N/A\nOptions: (A) yes (B) no"
      },
      {
        "from": "gpt",
        "value": "SOLUTION: It is light.\n###\nANSWER: A."
      }
    ]
  }
])");
  EXPECT_EQ(Run("convert", "--layout letter --out " + folder_.At("letter.json")).code, 0);
  EXPECT_EQ(Json::parse(folder_.Read("letter.json"))[0]["conversations"][1]["value"], "D");
  EXPECT_EQ(Run("convert", "--layout chat --shots 1 --out " + folder_.At("chat.jsonl")).code, 0);
  EXPECT_THAT(folder_.Read("chat.jsonl"), StartsWith(R"({"question_id":"10","messages":[)"));
  EXPECT_THAT(folder_.Read("chat.jsonl"), HasSubstr("Does ice float?"));
  EXPECT_EQ(Run("convert", "--layout chat --shot-ids 1 --out " + folder_.At("x")).code, 2);
}

TEST_F(ScienceQaCommandTest, RefusesFlagsThatWouldDoNothing) {
  const std::string captions = folder_.Write("captions.json", R"({"captions": {}})");
  const std::pair<std::string, std::string> cases[] = {
      {"--shots 1", "--shots goes with --layout chat, not with llava"},
      {"--layout lines --shot-ids 7", "--shot-ids goes with --layout chat, not with lines"},
      {"--layout letter --seed 4", "--seed goes with --layout chat, not with letter"},
      {"--shot-split val", "--shot-split goes with --layout chat, not with llava"},
      {"--last-line x", "--last-line goes with --layout letter, not with llava"},
      {"--layout letter --format QCM-A",
       "--format goes with --layout llava, lines, chat, not with letter"},
      {"--layout letter --captions " + captions, "--captions goes with --layout llava, lines"},
      {"--layout chat --shot-ids 7 --shots 1", "--shot"},
      {"--layout chat --shot-ids 7 --seed 1", "--s"}};
  for (const auto& [flags, message] : cases) {
    const Outcome refused = Run("convert", flags + " --out " + folder_.At("none.json"));
    EXPECT_EQ(refused.code, 2) << flags << refused.output;
    EXPECT_THAT(refused.output, HasSubstr(message));
  }
  EXPECT_FALSE(std::filesystem::exists(folder_.At("none.json")));
  const Outcome run = Run("run", "--layout chat --pictures /nowhere --replay /dev/null --out " +
                                     folder_.At("none.json"));
  EXPECT_EQ(run.code, 2) << run.output;
  EXPECT_THAT(run.output, HasSubstr("--pictures goes with --layout llava, letter, not with chat"));
}

TEST_F(ScienceQaCommandTest, TellsWhatIsWrong) {
  EXPECT_EQ(Eval("scienceqa 2>&1").code, 2);
  EXPECT_EQ(Eval("scienceqa score 2>&1").code, 2);
  const Outcome format = Run("convert", "--format ABC --out " + folder_.At("x"));
  EXPECT_EQ(format.code, 2);
  EXPECT_THAT(format.output, StartsWith("llava-eval: \"ABC\" is no format"));
  const Outcome missing = Run("score", "--predictions /nowhere/x");
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.output, HasSubstr("/nowhere/x"));
  const Outcome split = Run("score", "--split dev --predictions " + problems_);
  EXPECT_EQ(split.code, 2);
  const Outcome line =
      Run("score", "--predictions " + folder_.Write("a.jsonl", "{\"id\": 1, \"text\": \"A\"}\n{"));
  EXPECT_EQ(line.code, 1);
  EXPECT_THAT(line.output, HasSubstr("a.jsonl:2: no JSON"));
  const Outcome full = Run("convert", "--out /nowhere/x.json");
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.output, HasSubstr("/nowhere/x.json"));
}

TEST_F(ScienceQaCommandTest, HelpExplainsTheLayoutsThatAreTaken) {
  for (const std::string command : {"convert", "run"}) {
    const std::string help = Eval("scienceqa " + command + " --help").output;
    EXPECT_NE(help.find("letter: "), std::string::npos) << help;
    EXPECT_EQ(help.find("lines: ") != std::string::npos, command == "convert") << help;
  }
}

}  // namespace
}  // namespace llava
