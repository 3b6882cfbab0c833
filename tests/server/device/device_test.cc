// Threads that own a device: a GPU that counts its streams stands in for one.

#include "server/device/device.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <future>
#include <string>
#include <thread>

#include "model/ops/feature.h"

namespace llava {
namespace {

using c10::Device;
using c10::Stream;

// Devices whose pool gives a new stream each time.
class CountingGpus : public c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
 public:
  CountingGpus() : before_(Registered().exchange(this)) {}
  ~CountingGpus() override { Registered() = before_; }

  Stream getStreamFromGlobalPool(Device device, bool) const override {
    return Stream(Stream::UNSAFE, device, ++made);
  }
  Stream exchangeStream(Stream stream) const noexcept override {
    current = stream.id();
    return stream;
  }

  mutable std::atomic<c10::StreamId> made = 0;
  inline static thread_local c10::StreamId current = 0;  // of the calling thread

 private:
  using Registry = std::atomic<const c10::impl::DeviceGuardImplInterface*>;
  static Registry& Registered() {
    return c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)];
  }
  const c10::impl::DeviceGuardImplInterface* const before_;
};

c10::StreamId Enter(int gpu) {
  EnterDeviceThread({c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(gpu)}, /*threads=*/1,
                    /*workers=*/1, /*weight_bytes=*/0);
  return CountingGpus::current;
}

c10::StreamId OfANewThread(int gpu) {
  c10::StreamId stream = 0;
  std::thread([&] { stream = Enter(gpu); }).join();
  return stream;
}

TEST(EnterDeviceThreadTest, AThreadKeepsItsStreamAndTheNextOneTakesIt) {
  const CountingGpus gpus;
  std::promise<void> go_on;
  std::array<c10::StreamId, 2> own{};
  std::promise<void> entered;
  std::thread first([&] {
    own[0] = Enter(0);
    own[1] = Enter(0);
    entered.set_value();
    go_on.get_future().wait();
  });
  entered.get_future().wait();
  EXPECT_EQ(own[0], own[1]) << "a worker that begins anew";
  const c10::StreamId beside = OfANewThread(0);
  EXPECT_NE(beside, own[0]) << "one thread's at a time";
  for (int i = 0; i < 100; ++i) EXPECT_EQ(OfANewThread(0), beside);
  const c10::StreamId other_gpu = OfANewThread(1);
  const c10::StreamId made = gpus.made;
  EXPECT_LE(made, 3) << "each device has streams of its own, which a test before may have left";
  go_on.set_value();
  first.join();
  EXPECT_EQ(OfANewThread(0), own[0]);
  EXPECT_EQ(OfANewThread(1), other_gpu);
  EXPECT_EQ(gpus.made, made);
}

TEST(CheckDeviceTest, ABuildWithoutCudaSaysSo) {
  if (ops::BuiltWithCuda()) GTEST_SKIP() << "a build with CUDA";
  const absl::Status status = CheckDevice(Device(c10::DeviceType::CUDA, 0));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr("cuda:0"), testing::HasSubstr("this build")));
}

}  // namespace
}  // namespace llava
