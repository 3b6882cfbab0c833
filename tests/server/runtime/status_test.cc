#include "server/runtime/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

#include "google/rpc/error_details.pb.h"

namespace llava {
namespace {

template <typename Error>
absl::Status Thrown(Error error) {
  return FromException(std::make_exception_ptr(error));
}

TEST(StatusTest, CodesAndMessagesSurviveTheWire) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
  EXPECT_TRUE(FromGrpc(ToGrpc(absl::OkStatus())).ok());
}

TEST(StatusTest, RetryInfoSurvivesTheWire) {
  const absl::Status status =
      FromGrpc(ToGrpc(OverloadedError("queue full", std::chrono::milliseconds(1250))));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(GetDetail(status, &retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 250'000'000);
  EXPECT_EQ(RetryAfter(status), std::chrono::milliseconds(1250));
  EXPECT_EQ(RetryAfter(absl::UnavailableError("queue full")), std::nullopt);
  google::rpc::DebugInfo other;
  EXPECT_FALSE(GetDetail(status, &other));
}

TEST(StatusTest, ExceptionsBecomeTheRightCode) {
  EXPECT_EQ(Thrown(std::invalid_argument("bad")), absl::InvalidArgumentError("bad"));
  EXPECT_EQ(Thrown(std::out_of_range("far")), absl::InvalidArgumentError("far"));
  EXPECT_EQ(Thrown(std::bad_alloc()).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      Thrown(std::runtime_error("shape\nException raised from x (most recent call first):\n#0")),
      absl::InternalError("shape"));
  EXPECT_EQ(Thrown(std::system_error(EAGAIN, std::generic_category(), "a thread")).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Thrown(std::system_error(EIO, std::generic_category(), "a file")).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(FromException(std::make_exception_ptr(7)).code(), absl::StatusCode::kInternal);
}

TEST(StatusTest, MemoryThatLibTorchMissesIsAResource) {
  for (const char* const said :
       {"CUDA out of memory. Tried to allocate 500.00 GiB. GPU 0 has a total capacity of 79 GiB",
        "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: not enough memory: you "
        "tried to allocate 8 bytes.",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"}) {
    EXPECT_EQ(Thrown(std::runtime_error(std::string(said) + "\nSearch for x\nException raised")),
              absl::ResourceExhaustedError(said));
  }
}

TEST(StatusTest, UnimplementedNamesTheField) {
  EXPECT_THAT(std::string(UnimplementedField("adapter_id").message()),
              ::testing::HasSubstr("\"adapter_id\""));
}

}  // namespace
}  // namespace llava
