// When the start of a process is over.

#include <gtest/gtest.h>

#include "tests/server/lifecycle/lifecycle_world.h"

namespace llava {
namespace {

using std::chrono::seconds;

TEST(LifecycleStart, TheFirstLoadsAreDoneWhenEachModelHasWhatItCanHave) {
  const auto done = [](LifecycleWorld& world) { return world.life().FirstLoadsDone(); };
  LifecycleWorld world(LifecycleWith());
  EXPECT_FALSE(done(world)) << "nobody has looked";
  world.Publish(1, "big");
  world.Publish(1, "m");
  world.Publish(2, "m");
  world.Look();
  EXPECT_FALSE(done(world));
  world.EndLoad(1, absl::OkStatus(), "big");
  EXPECT_FALSE(done(world));
  world.EndLoad(2, absl::DataLossError("broken"));
  EXPECT_FALSE(done(world)) << "the older one stands in, and has not been tried";
  world.EndLoad(1);
  EXPECT_TRUE(done(world));

  LifecycleWorld empty(LifecycleWith());
  empty.Look();
  EXPECT_TRUE(done(empty));

  LifecycleWorld broken(LifecycleWith());
  broken.Publish(1);
  broken.Look();
  broken.EndLoad(1, absl::DataLossError("broken"));
  EXPECT_TRUE(done(broken));
  broken.Pass(seconds(100));
  ASSERT_TRUE(broken.Loading(1));
  EXPECT_TRUE(done(broken)) << "further tries hold nobody up";
}

TEST(LifecycleStart, WhoPublishesFasterThanVersionsLoadDoesNotHoldUpTheStart) {
  LifecycleWorld world(LifecycleWith());
  world.Publish(1);
  world.Look();
  world.Publish(2);
  world.Look();
  EXPECT_FALSE(world.life().FirstLoadsDone());
  world.EndLoad(1);
  EXPECT_EQ(world.State(2), v1::MODEL_STATE_LOADING);
  EXPECT_TRUE(world.life().FirstLoadsDone());
}

// What is taken away then is nobody's choice any more, as nothing is chosen.
TEST(LifecycleStart, VersionsMayGoWhileTheProcessDrains) {
  LifecycleWorld world(LifecycleWith("latest:2"));
  world.Publish(1);
  world.Publish(2);
  world.Look();
  const uint64_t first = world.Loading(1) ? 1 : 2;
  world.life().Drain();
  world.Delete(3 - first);
  world.Look();
  EXPECT_FALSE(world.life().FirstLoadsDone()) << "the other is being loaded";
  world.EndLoad(first, kBroken);
  EXPECT_TRUE(world.life().FirstLoadsDone());
}

}  // namespace
}  // namespace llava
