#include "server/runtime/file_limit.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <utility>

namespace llava {
namespace {

TEST(FileLimitTest, IsRaisedToWhatTheSystemAllows) {
  rlimit usual{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &usual), 0);
  rlimit low = usual;
  low.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_EQ(RaiseFileLimit(), usual.rlim_max);
  rlimit now{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &now), 0);
  EXPECT_EQ(now.rlim_cur, usual.rlim_max);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
}

TEST(FileLimitTest, ConnectionsLeaveRoomForTheProcessItself) {
  EXPECT_EQ(ConnectionsWithin(1024), 512);
  EXPECT_EQ(ConnectionsWithin(4096), 3584);
  EXPECT_EQ(ConnectionsWithin(100), 50);
  EXPECT_EQ(ConnectionsWithin(1), 1);
  EXPECT_GT(ConnectionsWithin(~0ULL), 1'000'000'000);
}

TEST(FileLimitTest, HttpLeavesGrpcItsShare) {
  const auto shares = [](uint64_t files, int http) {
    const ConnectionShares shared = ShareConnections(files, http);
    return std::pair(shared.http, shared.grpc);
  };
  EXPECT_EQ(shares(65536, 4096), std::pair(4096, 65024 - 4096));
  EXPECT_EQ(shares(1024, 4096), std::pair(384, 128));
  EXPECT_EQ(shares(1024, 100), std::pair(100, 412));
  EXPECT_EQ(shares(1, 4096), std::pair(1, 1));
}

}  // namespace
}  // namespace llava
