// Versions that go and keep their memory, and devices that do not come back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <string>
#include <thread>

#include "tests/server/lifecycle/model_manager_harness.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(ModelManagerTest, AVersionIsGoneWhenItsMemoryIs) {
  options_.hung_after = milliseconds(1);
  options_.on_device_lost = [](const std::string& reason) {
    ADD_FAILURE() << "the other version serves: " << reason;
  };
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  loader_.LetStay(true);
  repository_.Publish("emoji", 2);
  ASSERT_TRUE(Reaches(2, v1::MODEL_STATE_READY));
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_DRAINING));
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(Status(1).state(), v1::MODEL_STATE_DRAINING) << "nobody holds it, but it is there";
  loader_.LetStay(false);
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_UNLOADED));
  EXPECT_EQ(loader_.alive(), 1);
}

TEST_F(ModelManagerTest, TellsThatTheOneThatMadeWayKeepsItsMemory) {
  options_.swap_mode = SwapMode::kInPlace;
  options_.hung_after = milliseconds(20);
  options_.retry_delay = std::chrono::hours(1);  // not before there is room
  std::promise<std::string> told;
  options_.on_device_lost = [&](const std::string& reason) { told.set_value(reason); };
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  loader_.LetStay(true);
  repository_.Publish("emoji", 2);
  auto reason = told.get_future();
  ASSERT_EQ(reason.wait_for(seconds(60 * kSlowdown)), std::future_status::ready);
  EXPECT_THAT(reason.get(), HasSubstr("version 1 of emoji hangs"));
  EXPECT_THAT(loader_.routed(), IsEmpty());
  loader_.LetStay(false);
  EXPECT_TRUE(Reaches(2, v1::MODEL_STATE_READY));
}

TEST_F(ModelManagerTest, TellsOnceThatADeviceIsLost) {
  std::atomic<int> told = 0;
  options_.on_device_lost = [&](const std::string& reason) {
    EXPECT_EQ(reason, "an illegal address");
    ++told;
  };
  repository_.Publish("emoji", 1);
  Start();
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_READY));
  EXPECT_EQ(told, 0);
  loader_.LoseDevice("an illegal address");
  EXPECT_TRUE(Eventually([&] { return told > 0; }));
  repository_.Publish("emoji", 2);
  ASSERT_TRUE(Reaches(1, v1::MODEL_STATE_UNLOADED));
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace llava
