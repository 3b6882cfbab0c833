// llava-eval as a program.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/eval/text_map.h"
#include "tests/model/eval/eval_program.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;

const std::string kModels = SourceDir() + "/deploy/models/";
const std::string kShipped = kModels + "emoji --tower " + kModels + "emoji-tower";

TEST(ChatQualityCommandTest, PrintsJson) {
  const Outcome outcome =
      Eval("chat-quality " + kShipped + " --per-type 2 --objects 2 --seed 5 --json 2>/dev/null");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const auto json = nlohmann::json::parse(outcome.output);
  for (const char* group : {"naming", "counting", "left_right", "existence", "place", "reasoning",
                            "follow_up", "chains", "detail", "bigger", "background"}) {
    ASSERT_TRUE(json.contains(group)) << group;
    EXPECT_TRUE(json[group]["blind"].is_number());
    EXPECT_TRUE(json[group]["majority"].is_number());
    EXPECT_TRUE(json[group]["oracle"].is_null()) << "no map was given";
  }
  EXPECT_EQ(json["types"]["brief"]["n"], 2) << "the built-in list of questions";
  EXPECT_FALSE(json["types"].contains("this"));
  EXPECT_EQ(json["settings"]["seed"], 5);
  EXPECT_EQ(json["settings"]["objects"], (std::vector<int>{2, 2}));
}

TEST(ChatQualityCommandTest, WritesTheMistakesDown) {
  const TempFolder folder;
  const std::string file = folder.At("mistakes.jsonl");
  // Of a model whose projector was never trained.
  const Outcome outcome =
      Eval("chat-quality " + kModels + "emoji-base --tower " + kModels +
           "emoji-tower --per-type 1 --conditions picture --mistakes " + file + " 2>/dev/null");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  std::ifstream mistakes(file);
  std::string line;
  ASSERT_TRUE(std::getline(mistakes, line));
  const auto json = nlohmann::json::parse(line);
  for (const char* key : {"type", "question", "right", "given", "things", "background"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_NE(json["right"], json["given"]);
  EXPECT_NE(Eval("chat-quality " + kShipped + " --per-type 1 --mistakes /nowhere/m 2>&1").code, 0);
  const Outcome full = Eval("chat-quality " + kModels + "emoji-base --tower " + kModels +
                            "emoji-tower --per-type 1 --conditions picture --mistakes /dev/full "
                            "2>&1");
  EXPECT_EQ(full.code, 1) << full.output;
  EXPECT_THAT(full.output, HasSubstr("/dev/full: not all mistakes could be written"));
}

TEST(ChatQualityCommandTest, MeasuresAnOracleWithAMap) {
  const LanguageCheckpoint model = OpenLanguage(kModels + "emoji");
  const TempFolder folder;
  const std::string file = folder.At("map.safetensors");
  TextMap(*model.tokenizer, model.config.decoder.hidden_size, 1, 0.02).Save(file);
  const Outcome outcome = Eval("chat-quality " + kShipped + " --per-type 2 --json --oracle-map " +
                               file + " --conditions picture,oracle 2>/dev/null");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const auto json = nlohmann::json::parse(outcome.output);
  // Places mean nothing in a new map, but words do.
  EXPECT_GE(json["background"]["oracle"].get<double>(), 0.5);
  EXPECT_TRUE(json["naming"]["blind"].is_null());
}

TEST(ChatQualityCommandTest, PrintsATable) {
  const Outcome outcome =
      Eval("chat-quality " + kShipped + " --per-type 1 --conditions picture 2>/dev/null");
  ASSERT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("left_right"));
  EXPECT_THAT(outcome.output, HasSubstr("f_count"));
}

TEST(ChatQualityCommandTest, TellsWhatDoesNotFit) {
  EXPECT_EQ(Eval("chat-quality 2>&1").code, 2);
  EXPECT_EQ(Eval("chat-quality " + kShipped + " --objects 3-1 2>&1").code, 2);
  EXPECT_EQ(Eval("chat-quality " + kShipped + " --categories 50 2>&1").code, 2);
  EXPECT_EQ(Eval("chat-quality " + kShipped + " --conditions deaf 2>&1").code, 2);
  const Outcome blind = Eval("chat-quality " + kShipped + " --conditions blind 2>&1");
  EXPECT_EQ(blind.code, 2);
  EXPECT_THAT(blind.output, HasSubstr("picture"));
  const Outcome map =
      Eval("chat-quality " + kShipped + " --oracle-model " + kModels + "emoji 2>&1");
  EXPECT_EQ(map.code, 2);
  EXPECT_THAT(map.output, HasSubstr("--oracle-map"));
  const Outcome missing = Eval("chat-quality /nowhere --tower " + kModels + "emoji-tower 2>&1");
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.output, HasSubstr("/nowhere"));
  const Outcome tower = Eval("chat-quality " + kModels + "emoji --tower " +
                             (FixturesDir() / "tiny-llava").string() + " 2>&1");
  EXPECT_EQ(tower.code, 2);
  EXPECT_THAT(tower.output, HasSubstr("tower"));
}

}  // namespace
}  // namespace llava
