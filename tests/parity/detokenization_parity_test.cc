// expected/detokenization.json: ids to text while they come.

#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

using nlohmann::json;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }
const std::string kBroken = "\xEF\xBF\xBD";

TEST(DetokenizationParityTest, GivesWholeCharactersAsSoonAsTheyAreThere) {
  const Tokenizer& tokenizer = Folder().PlainTokenizer(true);
  ASSERT_FALSE(Folder().Json("detokenization").empty());
  for (const auto& [name, row] : Folder().Json("detokenization").items()) {
    StreamDecoder decoder(tokenizer);
    std::vector<std::string> deltas;
    for (const int32_t id : IdsOf(row.at("ids"))) {
      if (id == tokenizer.eos_id()) break;
      deltas.push_back(decoder.Push(id));
    }
    EXPECT_EQ(deltas, row.at("stream_deltas").get<std::vector<std::string>>()) << name;
    EXPECT_EQ(decoder.Flush(), row.at("flush").get<std::string>()) << name;
  }
}

// Decoding every prefix at once. Where a prefix ends within a character, transformers' tokenizers
// differ from each other in the number of U+FFFD and in what they swallow: then only the text in
// front of it is compared.
TEST(DetokenizationParityTest, DecodesEveryPrefix) {
  const Tokenizer& tokenizer = Folder().PlainTokenizer(false);
  int whole = 0;
  for (const auto& [name, row] : Folder().Json("detokenization").items()) {
    const std::vector<int32_t> ids = IdsOf(row.at("ids"));
    for (const char* key : {"hf_prefix", "slow_prefix"}) {
      if (!row.contains(key)) continue;
      ASSERT_EQ(row.at(key).size(), ids.size());
      for (size_t i = 0; i < ids.size(); ++i) {
        const std::string expected = row.at(key)[i];
        const std::string found = tokenizer.Decode({ids.data(), i + 1}, /*skip_special=*/true);
        const size_t broken = expected.find(kBroken);
        if (broken == std::string::npos) {
          EXPECT_EQ(found, expected) << name << " " << key << " " << i;
          ++whole;
        } else {
          EXPECT_EQ(found.substr(0, broken), expected.substr(0, broken)) << name << " " << key;
        }
      }
    }
  }
  EXPECT_GT(whole, 0);
}

}  // namespace
}  // namespace llava
