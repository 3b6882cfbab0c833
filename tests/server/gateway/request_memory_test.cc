#include "server/gateway/request_memory.h"

#include <gmock/gmock.h>

#include <memory>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kFree = 16 << 10;  // of each request

class RequestMemoryTest : public ::testing::Test {
 protected:
  // One more request that holds so much, besides what is free.
  absl::Status Hold(uint64_t bytes, const std::string& key) {
    shares_.push_back(memory_.NewShare());
    return shares_.back()->Hold(kFree + bytes, key);
  }

  Metrics metrics_{"gateway"};
  RequestMemory memory_{1000, metrics_};
  std::vector<std::shared_ptr<RequestMemory::Share>> shares_;
};

TEST_F(RequestMemoryTest, WhatIsHeldIsBoundedAndGivenBack) {
  EXPECT_TRUE(Hold(600, "").ok());
  EXPECT_TRUE(Hold(400, "").ok());
  const absl::Status full = Hold(1, "");
  EXPECT_EQ(full.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(full.message(), HasSubstr("--request-bytes"));
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(GetDetail(full, &retry));
  EXPECT_TRUE(Hold(0, "").ok()) << "what is small passes";
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_gateway_request_bytes 1000"));
  shares_.clear();
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_gateway_request_bytes 0"));
  EXPECT_TRUE(Hold(1000, "").ok());
}

TEST_F(RequestMemoryTest, AShareGrowsOnly) {
  ASSERT_TRUE(Hold(300, "ann").ok());
  EXPECT_TRUE(shares_[0]->Hold(kFree + 100, "ann").ok());
  EXPECT_TRUE(Hold(300, "bob").ok());
  EXPECT_TRUE(shares_[0]->Hold(kFree + 700, "ann").ok()) << "its only request may take the rest";
  EXPECT_FALSE(shares_[1]->Hold(kFree + 301, "bob").ok());
}

TEST_F(RequestMemoryTest, AKeyLeavesAsMuchAsItTakes) {
  ASSERT_TRUE(Hold(200, "ann").ok());
  ASSERT_TRUE(Hold(300, "ann").ok());
  const absl::Status refused = Hold(1, "ann");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("\"ann\" hold 500 bytes, 500 of --request-bytes"));
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(GetDetail(refused, &retry));
  EXPECT_FALSE(shares_[0]->Hold(kFree + 201, "ann").ok()) << "nor may one of several grow";
  ASSERT_TRUE(Hold(125, "bob").ok());
  ASSERT_TRUE(Hold(125, "bob").ok());
  EXPECT_EQ(Hold(1, "bob").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Hold(250, "eve").ok()) << "the only request of a key";
  shares_.clear();
  EXPECT_TRUE(Hold(500, "ann").ok()) << "nothing is remembered";
  EXPECT_FALSE(Hold(1, "ann").ok());
}

TEST_F(RequestMemoryTest, WhatIsNoQuestionHasLessForFree) {
  const auto share = memory_.NewShare(/*free_bytes=*/100);
  EXPECT_TRUE(share->Hold(100, "ann").ok());
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_gateway_request_bytes 0"));
  EXPECT_TRUE(share->Hold(600, "ann").ok());
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_gateway_request_bytes 500"));
}

}  // namespace
}  // namespace llava
