#include "model/train/tokenizer_command.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/text/tokenizer.h"
#include "model/train/scene_corpus.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

fs::path Folder(const std::string& name) {
  const fs::path folder = fs::path(testing::TempDir()) / ("tokenizer_command_test_" + name);
  fs::remove_all(folder);
  return folder;
}

std::string Read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TEST(TokenizerCommandTest, KnowsTheWordsOfScenesAndTheSymbolsOfTheTemplate) {
  TokenizerCommand command;
  command.output = Folder("scenes");
  command.scenes = 600;
  const TokenizerSummary summary = TrainTokenizer(command);
  EXPECT_EQ(summary.vocabulary, 1000);
  EXPECT_LT(summary.tokens_per_word, 1.5);
  const Tokenizer tokenizer = Tokenizer::Load(command.output);
  for (const std::string& word : SceneWords(48)) {
    EXPECT_EQ(tokenizer.EncodePieces(word).size(), 1) << word;
  }
  for (const char* symbol : {"USER:", "ASSISTANT:", "<image>", "<part>"}) {
    EXPECT_GE(tokenizer.IdOf(symbol), 4) << symbol;
  }
  EXPECT_EQ(tokenizer.Encode("USER:Two lions? ASSISTANT:No.</s>").size(), 9);
  // Bytes stand in for what it has never seen.
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode("Zürich")), "Zürich");
  // Nothing is left but the two files.
  EXPECT_EQ(std::distance(fs::directory_iterator(command.output), {}), 2);

  // The same again gives the same bytes, wherever it is done.
  const std::string bytes = Read(command.output / "tokenizer.model");
  command.output = Folder("again");
  TrainTokenizer(command);
  EXPECT_TRUE(Read(command.output / "tokenizer.model") == bytes);
}

TEST(TokenizerCommandTest, TooFewPiecesAreTold) {
  TokenizerCommand command;
  command.output = Folder("few");
  command.scenes = 300;
  command.vocabulary = 500;
  try {
    TrainTokenizer(command);
    FAIL() << "500 pieces cannot hold all words";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("larger vocabulary"));
  }
  EXPECT_FALSE(fs::exists(command.output / "tokenizer.model"));
}

TEST(TokenizerCommandTest, ReadsTextsAndRecords) {
  TokenizerCommand command;
  command.output = Folder("texts");
  fs::create_directories(command.output);
  const fs::path text = command.output / "a.txt", records = command.output / "b.json";
  std::ofstream lines(text);
  for (int i = 0; i < 200; ++i) lines << "gondola gondola\n";
  lines.close();
  std::ofstream(records) << R"([{"id": "1", "conversations": [
      {"from": "human", "value": "<image>\nxylophone xylophone xylophone"},
      {"from": "gpt", "value": "xylophone xylophone\nxylophone xylophone"}]}])";
  command.texts = {text, records};
  command.vocabulary = 320;
  EXPECT_EQ(TrainTokenizer(command).lines, 203);
  const Tokenizer tokenizer = Tokenizer::Load(command.output);
  EXPECT_EQ(tokenizer.EncodePieces("gondola").size(), 1);
  EXPECT_EQ(tokenizer.EncodePieces("xylophone").size(), 1);

  std::ofstream(records) << R"([{"id": "1"}])";
  try {
    TrainTokenizer(command);
    FAIL() << "records without conversations were taken";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("b.json"));
  }
  command.texts = {command.output / "missing.txt"};
  EXPECT_THROW(TrainTokenizer(command), std::invalid_argument);
}

TEST(TokenizerCommandTest, NamesThePackageOfAMissingProgram) {
  const std::string path = std::getenv("PATH");
  setenv("PATH", "/nowhere", 1);
  TokenizerCommand command;
  command.output = Folder("missing");
  try {
    TrainTokenizer(command);
    setenv("PATH", path.c_str(), 1);
    FAIL() << "a program was found in no folder";
  } catch (const std::runtime_error& error) {
    setenv("PATH", path.c_str(), 1);
    EXPECT_THAT(error.what(), testing::HasSubstr("sentencepiece"));
  }
  EXPECT_FALSE(fs::exists(command.output));
}

}  // namespace
}  // namespace llava
