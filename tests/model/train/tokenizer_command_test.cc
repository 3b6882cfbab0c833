#include "model/train/tokenizer_command.h"

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/text/tokenizer.h"
#include "model/train/scene_corpus.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

TEST(TokenizerCommandTest, KnowsTheWordsOfScenesAndTheSymbolsOfTheTemplate) {
  const TempFolder folder;
  TokenizerCommand command;
  command.output = folder.path() / "scenes";
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
  const std::string bytes = ReadBytes(command.output / "tokenizer.model");
  command.output = folder.path() / "again";
  TrainTokenizer(command);
  EXPECT_TRUE(ReadBytes(command.output / "tokenizer.model") == bytes);
}

TEST(TokenizerCommandTest, TooFewPiecesAreTold) {
  const TempFolder folder;
  TokenizerCommand command;
  command.output = folder.path() / "few";
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
  const TempFolder folder;
  TokenizerCommand command;
  command.output = folder.path();
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += "gondola gondola\n";
  const fs::path text = folder.Write("a.txt", lines);
  const fs::path records = folder.Write("b.json", R"([{"id": "1", "conversations": [
      {"from": "human", "value": "<image>\nxylophone xylophone xylophone"},
      {"from": "gpt", "value": "xylophone xylophone\nxylophone xylophone"}]}])");
  command.texts = {text, records};
  command.vocabulary = 320;
  EXPECT_EQ(TrainTokenizer(command).lines, 203);
  const Tokenizer tokenizer = Tokenizer::Load(command.output);
  EXPECT_EQ(tokenizer.EncodePieces("gondola").size(), 1);
  EXPECT_EQ(tokenizer.EncodePieces("xylophone").size(), 1);

  folder.Write("b.json", R"([{"id": "1"}])");
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
  const TempFolder folder;
  TokenizerCommand command;
  command.output = folder.path() / "missing";
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
