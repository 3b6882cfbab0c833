// The sentencepiece tools as oracle: small models trained on the spot, ids compared on odd texts.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <unistd.h>

#include <gtest/gtest.h>

#include "tests/model/text/text_fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

struct Recipe {
  std::string name, options;         // no options: the shipped tokenizer as it is
  std::vector<std::string> symbols;  // user-defined

  friend void PrintTo(const Recipe& recipe, std::ostream* out) { *out << recipe.name; }
};

const std::vector<std::string> kSymbols = {"USER:", "<image>", "two words", "▁x",
                                           "日本",  "ab",      "abc"};

std::vector<Recipe> Recipes() {
  std::vector<Recipe> recipes;
  for (const std::string type : {"bpe", "unigram"}) {
    for (const std::string rule : {"nmt_nfkc", "identity"}) {
      for (const bool bytes : {false, true}) {
        for (const bool symbols : {false, true}) {
          Recipe r{type + "_" + rule + (bytes ? "_bytes" : "") + (symbols ? "_symbols" : ""),
                   "--model_type=" + type + " --normalization_rule_name=" + rule +
                       (bytes ? " --byte_fallback=true" : ""),
                   {}};
          if (symbols) r.symbols = kSymbols;
          recipes.push_back(r);
        }
      }
    }
    // As LLaMA's: every space counts.
    recipes.push_back(
        {type + "_llama",
         "--model_type=" + type +
             " --normalization_rule_name=identity --remove_extra_whitespaces=false "
             "--allow_whitespace_only_pieces=true --split_digits=true --byte_fallback=true",
         {}});
    recipes.push_back(
        {type + "_no_prefix",
         "--model_type=" + type + " --add_dummy_prefix=false --remove_extra_whitespaces=false",
         kSymbols});
  }
  recipes.push_back({"shipped", "", {"USER:", "ASSISTANT:", "<part>", "<image>"}});
  recipes.push_back({"bpe_casefold", "--model_type=bpe --normalization_rule_name=nmt_nfkc_cf", {}});
  return recipes;
}

bool HaveTools() {
  return std::system("command -v spm_train spm_encode spm_decode >/dev/null") == 0;
}

class SentencePieceTest : public testing::TestWithParam<Recipe> {
 protected:
  void SetUp() override {
    if (!HaveTools()) GTEST_SKIP() << "spm_train, spm_encode and spm_decode are not installed";
    const fs::path shipped = fs::path(SourceDir()) / "deploy/models/emoji/1/tokenizer.model";
    if (GetParam().options.empty() && !fs::exists(shipped)) {
      GTEST_SKIP() << "no shipped model at " << shipped;
    }
    if (GetParam().options.empty()) {
      fs::copy_file(shipped, folder_ / "m.model");
    } else {
      Train();
    }
  }
  void Train() {
    std::mt19937 random(3);
    std::ofstream corpus(folder_ / "corpus.txt");
    const std::vector<std::string> words = {
        "the",  "picture", "shows", "a",      "red", "square",   "next", "to",
        "blue", "circle",  "there", "are",    "two", "people",   "near", "water",
        "Über", "Fluß",    "grün",  "Привет", "мир", "日本語",   "漢字", "showing",
        "42",   "3.14",    "user",  "abcde",  "x",   "xylophone"};
    for (int i = 0; i < 1500; ++i) {
      for (size_t n = 3 + random() % 12; n > 0; --n) {
        corpus << words[random() % words.size()];
        if (random() % 6 == 0) corpus << static_cast<char>('a' + random() % 26);
        corpus << (random() % 9 ? " " : random() % 2 ? ", " : "  ");
      }
      corpus << ".\n";
    }
    corpus.close();
    std::string symbols;
    for (const std::string& s : GetParam().symbols) symbols += (symbols.empty() ? "" : ",") + s;
    Shell(
        "spm_train --input=corpus.txt --model_prefix=m --vocab_size=" +
        std::string(GetParam().options.find("byte_fallback") != std::string::npos ? "520" : "260") +
        " --hard_vocab_limit=false --num_threads=1 --minloglevel=3 " + GetParam().options +
        (symbols.empty() ? "" : " --user_defined_symbols='" + symbols + "'"));
    ASSERT_TRUE(fs::exists(folder_ / "m.model"));
  }

  void Shell(const std::string& command) {
    const std::string line = "cd '" + folder_.string() + "' && " + command + " >log.txt 2>&1";
    ASSERT_EQ(std::system(line.c_str()), 0) << command << "\n" << ReadBytes(folder_ / "log.txt");
  }
  std::vector<std::string> Lines(const std::string& file) {
    std::vector<std::string> lines;
    std::ifstream in(folder_ / file);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }

  // Ids that spm_encode gives for every text.
  std::vector<std::vector<int32_t>> Oracle(const std::string& model,
                                           const std::vector<std::string>& texts) {
    std::ofstream in(folder_ / "in.txt", std::ios::binary);
    for (const std::string& text : texts) in << text << "\n";
    in.close();
    Shell("spm_encode --model=" + model + " --output_format=id --input=in.txt --output=out.txt");
    std::vector<std::vector<int32_t>> ids;
    for (const std::string& line : Lines("out.txt")) {
      std::istringstream numbers(line);
      ids.emplace_back(std::istream_iterator<int32_t>(numbers), std::istream_iterator<int32_t>());
    }
    return ids;
  }
  void ExpectSameIds(const std::string& model, const std::vector<std::string>& texts) {
    const Tokenizer tokenizer(ReadBytes(folder_ / model), {});
    const auto expected = Oracle(model, texts);
    ASSERT_EQ(expected.size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      ASSERT_EQ(tokenizer.EncodePieces(texts[i]), expected[i]) << "text " << i << ": " << texts[i];
    }
  }

  const TempFolder temp_;
  const fs::path& folder_ = temp_.path();
};
INSTANTIATE_TEST_SUITE_P(Recipes, SentencePieceTest, testing::ValuesIn(Recipes()),
                         [](const auto& info) { return info.param.name; });

TEST_P(SentencePieceTest, EncodesAndDecodesAsTheToolsDo) {
  std::mt19937 random(11);
  std::vector<std::string> texts = {"", " ", "   ", "▁", " ▁ ", "\t", "a", "é"};
  for (int i = 0; i < 1500; ++i) {
    texts.push_back(OddText(random, i % 2 == 1,
                            GetParam().symbols.empty()
                                ? std::vector<std::string>{"water ", "red square"}
                                : GetParam().symbols));
  }
  std::string longest;
  while (longest.size() < 20000) longest += texts[random() % texts.size()];
  texts.push_back(longest);
  ExpectSameIds("m.model", texts);

  // Decoding, over ids without unk (the tool writes " ⁇ " for it, we skip special tokens).
  const Tokenizer tokenizer(ReadBytes(folder_ / "m.model"), {});
  std::ofstream in(folder_ / "ids.txt");
  std::vector<std::string> decoded;
  for (const std::string& text : texts) {
    auto ids = tokenizer.EncodePieces(text);
    std::erase(ids, tokenizer.unk_id());
    if (ids.empty()) continue;
    for (size_t i = 0; i < ids.size(); ++i) in << (i ? " " : "") << ids[i];
    in << "\n";
    decoded.push_back(tokenizer.Decode(ids));
  }
  in.close();
  Shell("spm_decode --model=m.model --input_format=id --input=ids.txt --output=text.txt");
  EXPECT_EQ(Lines("text.txt"), decoded);
}

// Pieces turned to "unused" come apart again by the merges that made them.
TEST_P(SentencePieceTest, TakesUnusedPiecesApartAsTheToolDoes) {
  std::string file = ReadBytes(folder_ / "m.model");
  const Tokenizer before(file, {});
  // SentencePiece {1: text, 2: score, 3: type} of normal pieces has no type field: add "unused".
  std::mt19937 random(5);
  std::string changed;
  int num_changed = 0;
  for (size_t at = 0; at < file.size() && file[at] == 0x0A;) {
    const size_t size = static_cast<uint8_t>(file[at + 1]);
    ASSERT_LT(size, 0x7Eu);
    std::string piece = file.substr(at + 2, size);
    const size_t text_size = static_cast<uint8_t>(piece[1]);
    if (piece.size() == 2 + text_size + 5 && text_size > 1 && random() % 4 == 0) {
      piece += "\x18\x05";
      ++num_changed;
    }
    changed += {'\x0A', static_cast<char>(piece.size())};
    changed += piece;
    at += 2 + size;
    if (at < file.size() && file[at] != 0x0A) changed += file.substr(at);
  }
  ASSERT_GT(num_changed, 20);
  temp_.Write("unused.model", changed);
  std::vector<std::string> texts;
  for (int i = 0; i < 500; ++i) {
    texts.push_back(OddText(random, false, {"the picture ", "xylophone", "square", "Über Fluß"}));
  }
  const Tokenizer after(changed, {});
  ASSERT_TRUE(std::any_of(texts.begin(), texts.end(), [&](const std::string& text) {
    return before.EncodePieces(text) != after.EncodePieces(text);
  }));
  ExpectSameIds("unused.model", texts);
}

}  // namespace
}  // namespace llava
