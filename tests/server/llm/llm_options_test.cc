// What --max-running and --kv-bytes are where nobody says.

#include "server/llm/llm_options.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "server/llm/disposal_threads.h"
#include "server/runtime/service_process.h"
#include "tests/support/fixtures.h"

namespace llava {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(ChooseKvBytesTest, LeavesRoomForTheNextVersion) {
  const WorkerSize size{.fixed = 15 * kGiB, .kv_sequence = 2 * kGiB};
  const auto choose = [&](uint64_t device_bytes, int most, int served) {
    return ChooseKvBytes(device_bytes, size, most, served, 32);
  };
  EXPECT_EQ(choose(72 * kGiB, 2, 1), 21 * kGiB);
  EXPECT_EQ(choose(72 * kGiB, 1, 1), 57 * kGiB);
  EXPECT_EQ(choose(72 * kGiB, 3, 2), 9 * kGiB);
  EXPECT_EQ(choose(40 * kGiB, 3, 2), 5 * kGiB) << "no third one fits";
  EXPECT_EQ(choose(32 * kGiB, 2, 1), 1 * kGiB);
  EXPECT_EQ(choose(32 * kGiB - 2, 2, 1), 17 * kGiB - 2) << "no two fit";
  EXPECT_EQ(choose(21 * kGiB, 3, 2), 6 * kGiB);
  EXPECT_EQ(choose(12 * kGiB, 2, 1), 1 * kGiB) << "loading will tell";
  EXPECT_EQ(ChooseKvBytes(72 * kGiB, {.fixed = kGiB, .kv_sequence = kGiB / 64}, 2, 1, 32), 8 * kGiB)
      << "no more than is of use";
}

// Two versions of what this chooses fit the device that it was told of.
TEST(LlmOptionsTest, KeysAndValuesTakeWhatTheDeviceHas) {
  const VersionRef version{"tiny", 1, FixturesDir() / "tiny-llava"};
  constexpr uint64_t kSequence = 2048 * 2 * 3 * 2 * 16 * 4;  // positions, k and v, layers, float32
  Metrics metrics("llm");
  Admission admission;
  FeatureStore store(1 << 20, std::chrono::seconds(30), metrics);
  DisposalThreads disposal;
  LlmService service({}, store, admission, metrics);
  LlmServableLoader::Options options;
  uint64_t kv_bytes = 0;
  options.open = [&](const LanguageOptions& language, const LoadPace&) {
    kv_bytes = language.kv_bytes;
    return absl::CancelledError("seen");
  };
  // What the keys and values of two workers, which kv_bytes tells of one, leave of the estimate.
  const auto fixed = [&] {
    LlmServableLoader loader(options, service, store, disposal, metrics);
    EXPECT_TRUE(absl::IsCancelled(loader.Load(version, {}).status()));
    const uint64_t both = loader.EstimateBytes(version, 2).value_or(0);
    EXPECT_EQ(loader.EstimateBytes(version, 1).value_or(0), both / 2);
    return both / 2 - kv_bytes;
  };
  options.engine.max_running = 2000;
  options.language.kv_bytes = 3 * kGiB;
  options.device_bytes = 20 * kGiB;
  const uint64_t least = fixed();
  EXPECT_EQ(kv_bytes, 3 * kGiB) << "as it was told";
  options.language.kv_bytes = 0;
  EXPECT_EQ(fixed(), least);
  EXPECT_EQ(kv_bytes, 10 * kGiB - least);
  options.most_versions = 1;
  EXPECT_EQ(fixed(), least);
  EXPECT_EQ(kv_bytes, 20 * kGiB - least);
  options.engine.max_running = 8;
  fixed();
  EXPECT_EQ(kv_bytes, 16 * 8 * kSequence) << "no more than is of use";
}

TEST(LlmOptionsTest, WhatIsLeftToTheProgramDependsOnTheDevice) {
  const auto parse = [](LlmOptions& options, const std::string& device) {
    Settings settings("llava-llm", "test");
    options.Declare(settings);
    const std::vector<const char*> argv = {"llava-llm", "--model", "m", "--device", device.c_str()};
    EXPECT_FALSE(settings.Parse(static_cast<int>(argv.size()), argv.data()));
  };
  ModelManager::Options managed;
  managed.memory_budget = 124 * kGiB;
  LlmOptions cpu, gpus;
  parse(cpu, "cpu");
  managed.names = {"m"};
  EXPECT_EQ(cpu.ForLoader(managed).language.kv_bytes, 4 * kGiB);
  EXPECT_EQ(cpu.engine.max_running, 32);
  parse(gpus, "cuda:0,cuda:1");
  EXPECT_EQ(gpus.engine.max_running, 64);
  EXPECT_EQ(gpus.ForLoader(managed).device_bytes, 60 * kGiB);
  EXPECT_EQ(gpus.ForLoader(managed).language.kv_bytes, 0u);
  EXPECT_EQ(gpus.ForLoader(managed).most_versions, 2);
  managed.names = {"a", "b", "c"};
  EXPECT_EQ(gpus.ForLoader(managed).device_bytes, 20 * kGiB);
  managed.names = {};
  EXPECT_EQ(gpus.ForLoader(managed).language.kv_bytes, 4 * kGiB) << "any number of models may come";
  managed.fixed = VersionRef{"m", 1, "/nowhere"};
  EXPECT_EQ(gpus.ForLoader(managed).device_bytes, 60 * kGiB);
  EXPECT_EQ(gpus.ForLoader(managed).most_versions, 1);
}

}  // namespace
}  // namespace llava
