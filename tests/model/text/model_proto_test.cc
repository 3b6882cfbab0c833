#include "model/text/model_proto.h"

#include <random>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/text/text_fixtures.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;

std::string Field(int number, const std::string& payload) {
  std::string out(1, static_cast<char>(number << 3 | 2));
  for (size_t n = payload.size();; n >>= 7) {
    out += static_cast<char>((n & 0x7F) | (n > 0x7F ? 0x80 : 0));
    if (n <= 0x7F) break;
  }
  return out + payload;
}
std::string Number(int number, uint8_t value) {
  std::string key;
  if (number > 15) {
    key = {static_cast<char>((number << 3 & 0x7F) | 0x80), static_cast<char>(number >> 4)};
  } else {
    key = {static_cast<char>(number << 3)};
  }
  return key + static_cast<char>(value);
}
std::string Piece(const std::string& text, uint8_t type) {
  return Field(1, Field(1, text) + Number(3, type));
}

void ExpectRefused(const std::string& file, const std::string& why) {
  try {
    Tokenizer tokenizer(file, {});
    FAIL() << "accepted; expected: " << why;
  } catch (const std::runtime_error& e) {
    EXPECT_THAT(e.what(), HasSubstr(why));
  }
}

TEST(ModelProtoTest, ReadsASmallFile) {
  const ModelProto model =
      ParseModelProto(Piece("<unk>", 2) + Piece("a", 1) + Field(2, Number(3, 2) + Number(35, 0)) +
                      Field(3, Number(3, 0) + Number(5, 0)));
  ASSERT_EQ(model.pieces.size(), 2u);
  EXPECT_EQ(model.pieces[1].text, "a");
  EXPECT_EQ(model.pieces[0].type, ModelProto::PieceType::kUnknown);
  EXPECT_EQ(model.model_type, ModelProto::ModelType::kBpe);
  EXPECT_FALSE(model.add_dummy_prefix);
  EXPECT_TRUE(model.remove_extra_whitespaces);
  EXPECT_FALSE(model.escape_whitespaces);
}

TEST(ModelProtoTest, SaysWhatIsWrong) {
  const std::string unk = Piece("<unk>", 2);
  ExpectRefused("", "no pieces");
  ExpectRefused("hello, this is no model", "not a usable SentencePiece");
  ExpectRefused("{\"model\": {}}", "not a usable SentencePiece");
  ExpectRefused(Piece("a", 1), "no piece of type unknown");
  ExpectRefused(unk + Piece("<unk2>", 2), "two pieces of type unknown");
  ExpectRefused(unk + Piece("a", 1) + Piece("a", 1), "twice");
  ExpectRefused(unk + Piece("", 1), "piece 1 is empty");
  ExpectRefused(unk + Piece("a", 9), "piece 1 has type 9");
  ExpectRefused(unk + Piece("<0x41>", 6), "without byte_fallback");
  ExpectRefused(unk + Field(2, Number(35, 1)), "256 byte pieces");
  ExpectRefused(unk + Piece("<0xZZ>", 6) + Field(2, Number(35, 1)), "is no byte piece");
  ExpectRefused(unk + Field(2, Number(3, 3)), "model type 3");
  ExpectRefused(unk + Field(2, Number(24, 1)), "treat_whitespace_as_suffix");
  ExpectRefused(unk + Field(3, Field(2, "abc")), "precompiled_charsmap");
  ExpectRefused(unk + Field(5, Field(2, "abc")), "denormalizer");
  ExpectRefused(unk.substr(0, unk.size() - 1), "cut short");
}

// Damaged files are refused with an exception or give a tokenizer that still works somehow; they
// never crash (run under the address sanitizer too).
TEST(ModelProtoTest, SurvivesDamagedFiles) {
  std::vector<std::string> files = {ReadBytes(FixturesDir() / "orig-f32" / "tokenizer.model")};
  const std::string demo = SourceDir() + "/deploy/models/emoji/1/tokenizer.model";
  if (std::filesystem::exists(demo)) files.push_back(ReadBytes(demo));
  std::mt19937 random(7);
  int refused = 0, accepted = 0;
  auto attempt = [&](const std::string& file) {
    try {
      const Tokenizer tokenizer(file, {});
      ++accepted;
      for (int i = 0; i < 3; ++i) {
        auto ids = tokenizer.EncodeWithImageMarks(OddText(random, true, {"<image>", "</s>"}));
        std::erase(ids, kImageToken);
        tokenizer.Decode(ids);
      }
    } catch (const std::exception&) {
      ++refused;
    }
  };
  for (const std::string& file : files) {
    for (int i = 0; i < 150; ++i) attempt(file.substr(0, random() % file.size()));
    for (int i = 0; i < 300; ++i) {
      std::string broken = file;
      for (size_t n = 1 + random() % 4; n > 0; --n) {
        broken[random() % broken.size()] ^= static_cast<char>(1u << random() % 8);
      }
      attempt(broken);
    }
    for (int i = 0; i < 50; ++i) {
      std::string broken = file;
      const size_t at = random() % broken.size();
      broken.erase(at, random() % 40);
      attempt(broken);
    }
  }
  EXPECT_GT(refused, 150);
  EXPECT_GT(accepted, 20);
}

}  // namespace
}  // namespace llava
