#include "client/answer_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/client/fake_gateway.h"

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AnswerStreamTest : public ::testing::Test {
 protected:
  std::vector<std::string> pieces_;
  AnswerStream stream_{[this](std::string_view text) { pieces_.emplace_back(text); }};
};

TEST_F(AnswerStreamTest, PutsPiecesTogether) {
  EXPECT_TRUE(stream_.Add(Started("s", "t")).ok());
  EXPECT_EQ(stream_.started().turn_id(), "t");
  EXPECT_TRUE(stream_.Add(Text(0, "Ein ")).ok());
  EXPECT_TRUE(stream_.Add(Text(4, "Bär")).ok());
  EXPECT_TRUE(stream_.Add(Finished(8)).ok());
  const auto answer = std::move(stream_).Finish();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->text, "Ein Bär");
  EXPECT_EQ(answer->finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_THAT(pieces_, ElementsAre("Ein ", "Bär"));
}

TEST_F(AnswerStreamTest, DropsBytesThatCameBefore) {
  EXPECT_TRUE(stream_.Add(Text(0, "abc")).ok());
  EXPECT_TRUE(stream_.Add(Text(0, "abc")).ok());
  EXPECT_TRUE(stream_.Add(Text(1, "bcdef")).ok());
  EXPECT_TRUE(stream_.Add(Text(2, "c")).ok());
  EXPECT_TRUE(stream_.Add(Finished(6)).ok());
  EXPECT_THAT(pieces_, ElementsAre("abc", "def"));
  EXPECT_EQ(std::move(stream_).Finish()->text, "abcdef");
}

TEST_F(AnswerStreamTest, GapIsDataLoss) {
  EXPECT_TRUE(stream_.Add(Text(0, "abc")).ok());
  const absl::Status status = stream_.Add(Text(5, "f"));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes 3 to 5"));
}

TEST_F(AnswerStreamTest, WrongLengthIsDataLoss) {
  EXPECT_TRUE(stream_.Add(Text(0, "abc")).ok());
  EXPECT_TRUE(absl::IsDataLoss(stream_.Add(Finished(4))));
}

TEST_F(AnswerStreamTest, TextBehindTheEndIsDataLoss) {
  EXPECT_TRUE(stream_.Add(Finished(0)).ok());
  EXPECT_TRUE(absl::IsDataLoss(stream_.Add(Text(0, "a"))));
}

TEST_F(AnswerStreamTest, MissingEndIsDataLoss) {
  EXPECT_TRUE(stream_.Add(Text(0, "abc")).ok());
  EXPECT_TRUE(absl::IsDataLoss(std::move(stream_).Finish().status()));
}

}  // namespace
}  // namespace llava
