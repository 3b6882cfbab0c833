// What is said when a language model cannot be opened.

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/durable_file.h"
#include "server/device/load_failure.h"
#include "server/llm/model_runner.h"
#include "tests/model/checkpoint/unprivileged.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

const c10::SourceLocation kHere = {"malloc", "allocator.cpp", 7};

// That is not there yet, in a folder of its own.
fs::path TestFolder(const std::string& name) {
  const fs::path folder =
      fs::path(::testing::TempDir()) / ("open_language_" + name + "_" + std::to_string(getpid()));
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder / name;
}

template <typename Error>
absl::Status Thrown(const Error& error, const std::string& path = FixturesDir()) {
  return WhyNotOpened(path, std::make_exception_ptr(error));
}

TEST(OpenLanguageTest, MemoryAndDevicesSayNothingAgainstTheFiles) {
  const std::string memory = "CUDA out of memory. Tried to allocate 1953.12 GiB. GPU 0 has 79 GiB";
  EXPECT_THAT(c10::OutOfMemoryError(kHere, memory).what(), HasSubstr("\n")) << "LibTorch's stack";
  EXPECT_EQ(Thrown(c10::OutOfMemoryError(kHere, memory)), absl::ResourceExhaustedError(memory));
  EXPECT_EQ(Thrown(std::bad_alloc()).code(), absl::StatusCode::kResourceExhausted);
  const std::string host =
      "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes";
  EXPECT_EQ(Thrown(c10::Error(kHere, host)), absl::ResourceExhaustedError(host));
  EXPECT_EQ(Thrown(std::system_error(EAGAIN, std::generic_category(), "a thread")).code(),
            absl::StatusCode::kResourceExhausted);
  const std::string fault = "CUDA error: an illegal memory access was encountered";
  EXPECT_EQ(Thrown(c10::AcceleratorError(kHere, 700, fault + "\nCUDA kernel errors might be")),
            absl::InternalError(fault));
  const std::string launch = "CUDA: a launch failed: invalid device function";
  EXPECT_EQ(Thrown(std::runtime_error(launch)), absl::InternalError(launch));
}

TEST(OpenLanguageTest, AllElseIsTheFiles) {
  EXPECT_EQ(Thrown(std::runtime_error("a shard is too short")),
            absl::DataLossError("a shard is too short"));
  EXPECT_EQ(Thrown(c10::Error(kHere, "shapes differ")), absl::DataLossError("shapes differ"));
  EXPECT_EQ(Thrown(std::runtime_error("no config.json"), "/nowhere/at/all"),
            absl::NotFoundError("no config.json"));
  const std::string denied = std::string("config.json: ") + std::strerror(EACCES);
  EXPECT_EQ(Thrown(std::runtime_error(denied)), absl::PermissionDeniedError(denied));
  EXPECT_EQ(Thrown(std::invalid_argument("--dtype")), absl::InvalidArgumentError("--dtype"));
  EXPECT_EQ(Thrown(OpenStopped("stopped")), absl::CancelledError("stopped"));
}

TEST(OpenLanguageTest, WhatMustNotBeLookedAtIsNotMissing) {
  const fs::path folder = TestFolder("closed");
  fs::create_directories(folder / "model");
  fs::permissions(folder, fs::perms::none);
  const auto missing = std::runtime_error("is not a folder");
  {
    const Unprivileged somebody(folder.parent_path());
    EXPECT_EQ(Thrown(missing, folder / "model").code(), absl::StatusCode::kPermissionDenied);
  }
  fs::permissions(folder, fs::perms::owner_all);
  EXPECT_EQ(Thrown(missing, folder / "none").code(), absl::StatusCode::kNotFound);
}

TEST(OpenLanguageTest, AWorkerBeginsAnewWithTheWeightsThatWereOpened) {
  LanguageOptions options;
  const fs::path folder = TestFolder("anew");
  fs::copy(FixturesDir() / "tiny-llava", folder, fs::copy_options::recursive);
  options.model = folder;
  options.threads = 1;
  options.kv_bytes = 1 << 20;
  auto model = OpenLanguageWorkers(options);
  ASSERT_TRUE(model.ok()) << model.status();
  LoadWatch watch;
  EXPECT_TRUE(model->factory(0, watch));
  // Replaced: the mapping keeps what was opened.
  const fs::path file = folder / "model.safetensors";
  const std::string bytes = ReadSmallFile(file);
  WriteDurably(file, std::string(bytes.size(), '\0'));
  EXPECT_TRUE(model->factory(0, watch));
  WriteDurably(file, bytes);

  model = OpenLanguageWorkers(options);
  ASSERT_TRUE(model.ok()) << model.status();
  std::fstream(file, std::ios::in | std::ios::out) << "x";
  fs::last_write_time(file, fs::file_time_type::clock::now() + std::chrono::hours(1));
  try {
    model->factory(0, watch);
    FAIL() << "it was loaded";
  } catch (const LoadFailure& failure) {
    EXPECT_EQ(failure.status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(failure.status.message()), HasSubstr("was written to"));
  }
}

TEST(OpenLanguageTest, TellsWhatOfTheFilesIsChecked) {
  LanguageOptions options;
  options.model = SourceDir() + "/deploy/models/emoji/1";
  options.threads = 1;
  options.kv_bytes = 1 << 20;
  const auto model = OpenLanguageWorkers(options);
  ASSERT_TRUE(model.ok()) << model.status();
  LoadWatch watch;
  EXPECT_TRUE(model->factory(0, watch));
  EXPECT_EQ(*model->checked, 1);
}

TEST(OpenLanguageTest, KeysAndValuesThatNoMemoryHolds) {
  LanguageOptions options;
  options.model = FixturesDir() / "tiny-llava";
  options.threads = 1;
  options.kv_bytes = uint64_t{1} << 55;  // more than there are addresses
  const auto model = OpenLanguageWorkers(options);
  ASSERT_TRUE(model.ok()) << model.status();
  LoadWatch watch;
  try {
    model->factory(0, watch);
    FAIL() << "it was loaded";
  } catch (const LoadFailure& failure) {
    EXPECT_EQ(failure.status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(failure.status.message()), Not(HasSubstr("\n")));
  }
}

}  // namespace
}  // namespace llava
