#include "model/digest/sha256.h"

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using Implementation = Sha256::Implementation;

std::string HexOf(Implementation implementation, std::string_view bytes) {
  Sha256 hash(implementation);
  hash.Update(bytes);
  return ToHex(hash.Finish());
}

class Sha256Test : public testing::TestWithParam<Implementation> {};
INSTANTIATE_TEST_SUITE_P(Both, Sha256Test,
                         testing::Values(Implementation::kBest, Implementation::kPortable),
                         [](const auto& info) {
                           return info.param == Implementation::kBest ? "Best" : "Portable";
                         });

TEST_P(Sha256Test, FollowsTheStandardsVectors) {
  EXPECT_EQ(HexOf(GetParam(), ""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(HexOf(GetParam(), "abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(HexOf(GetParam(), "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(HexOf(GetParam(),
                  "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnop"
                  "qklmnopqrlmnopqrsmnopqrstnopqrstu"),
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(HexOf(GetParam(), std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_P(Sha256Test, DoesNotCareHowTheBytesAreCut) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 37 + i / 7);
  const std::string whole = HexOf(GetParam(), text);
  EXPECT_EQ(whole, HexOf(Implementation::kPortable, text));
  for (size_t piece = 1; piece < 200; ++piece) {
    Sha256 hash(GetParam());
    for (size_t i = 0; i < text.size(); i += piece)
      hash.Update(std::string_view(text).substr(i, piece));
    ASSERT_EQ(ToHex(hash.Finish()), whole) << piece;
  }
}

TEST_P(Sha256Test, AgreesAtEveryLengthOfTheLastBlock) {
  for (size_t size = 0; size <= 200; ++size) {
    const std::string text(size, 'x');
    ASSERT_EQ(HexOf(GetParam(), text), HexOf(Implementation::kPortable, text)) << size;
  }
}

// However many, wherever the bytes lie, and also behind a beginning that ends within a block.
TEST(Sha256TogetherTest, GivesEachItsOwnDigest) {
  std::string text;
  for (int i = 0; i < 40000; ++i) text += static_cast<char>(i * 37 + i / 7);
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  const size_t apart = 701;
  for (const auto implementation : {Implementation::kBest, Implementation::kPortable}) {
    for (const size_t begun : {0, 128, 65}) {
      for (size_t count = 1; count <= 35; ++count) {
        std::vector<Sha256> hashes(count, Sha256(implementation));
        std::vector<Sha256*> together;
        std::vector<const uint8_t*> first, second, third;
        for (size_t i = 0; i < count; ++i) {
          hashes[i].Update(std::string_view(text).substr(i * apart, begun));
          together.push_back(&hashes[i]);
          first.push_back(bytes + i * apart + begun);
          second.push_back(first.back() + 640);
          third.push_back(second.back() + 333);
        }
        Sha256::UpdateTogether(together, first, 640);
        Sha256::UpdateTogether(together, second, 333);
        Sha256::UpdateTogether(together, third, 0);
        Sha256::UpdateTogether(together, third, 100);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_EQ(hashes[i].Finish(),
                    HashBytes(std::string_view(text).substr(i * apart, begun + 640 + 333 + 100)))
              << i << " of " << count << " behind " << begun;
        }
      }
    }
  }
  EXPECT_GE(Sha256::MostTogether(), 1);
}

TEST(Sha256FileTest, HashesFilesLargerThanOnePiece) {
  const TempFolder folder;
  const std::string content(3 * (1 << 20) + 17, 'q');
  EXPECT_EQ(HashFile(folder.Write("file", content)), HashBytes(content));
}

TEST(Sha256FileTest, NamesTheFileThatCannotBeRead) {
  for (const std::string path : {"/no/such/file", "/"}) {  // not there; a folder
    try {
      HashFile(path);
      FAIL() << path;
    } catch (const std::runtime_error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr("cannot read " + path));
    }
  }
}

TEST(Sha256TextTest, HexGoesThereAndBack) {
  const Sha256Digest digest = HashBytes("abc");
  EXPECT_EQ(FromHex(ToHex(digest)), digest);
  EXPECT_EQ(FromHex("BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD"), digest);
  EXPECT_EQ(ToBytes(digest).size(), 32u);
  EXPECT_EQ(ToBytes(digest).substr(0, 2), "\xBA\x78");
  EXPECT_THROW(FromHex(""), std::invalid_argument);
  EXPECT_THROW(FromHex(ToHex(digest) + "0"), std::invalid_argument);
  EXPECT_THROW(FromHex(ToHex(digest).substr(1) + "g"), std::invalid_argument);
}

}  // namespace
}  // namespace llava
