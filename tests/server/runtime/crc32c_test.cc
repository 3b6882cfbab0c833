#include "server/runtime/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace llava {
namespace {

TEST(Crc32cTest, MatchesPublishedVectors) {  // RFC 3720 B.4
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62A8AB43u);
}

TEST(Crc32cTest, ExtendsOverPieces) {
  const std::string text = "features cross the wire in chunks";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Crc32c(text.substr(cut), Crc32c(text.substr(0, cut))), Crc32c(text)) << cut;
  }
}

}  // namespace
}  // namespace llava
