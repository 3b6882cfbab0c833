#include "server/lifecycle/lifecycle_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/lifecycle/test_repository.h"

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
constexpr auto kLanguage = Manifest::Kind::kLanguage;

class LifecycleOptionsTest : public ::testing::Test {
 protected:
  // The exit code, or -1: go on.
  int Parse(std::vector<std::string> arguments, Manifest::Kind kind = kLanguage) {
    options_ = {};
    Settings settings("llava-test", "test");
    options_.Declare(settings, kind);
    arguments.insert(arguments.begin(), "llava-test");
    std::vector<const char*> argv;
    for (const std::string& each : arguments) argv.push_back(each.c_str());
    ::testing::internal::CaptureStderr();
    const auto code = settings.Parse(static_cast<int>(argv.size()), argv.data());
    error_ = ::testing::internal::GetCapturedStderr();
    return code.value_or(-1);
  }
  absl::StatusOr<ModelManager::Options> Resolve(const std::string& model) {
    EXPECT_EQ(Parse({"--model", model}), -1) << error_;
    return options_.Resolve(kLanguage);
  }

  TestRepository repository_;
  LifecycleOptions options_;
  std::string error_;
};

TEST_F(LifecycleOptionsTest, OneOfModelAndRepository) {
  EXPECT_EQ(Parse({}), 2);
  EXPECT_THAT(error_, HasSubstr("--model is missing"));
  EXPECT_EQ(Parse({"--model", "a", "--repository", "b"}), 2);
  EXPECT_EQ(Parse({"--model", "a", "--models", "b"}), 2);
  EXPECT_EQ(Parse({"--model", "a", "--version-policy", "newest"}), 2);
  EXPECT_THAT(error_, HasSubstr("--version-policy"));
  EXPECT_EQ(Parse({"--model", "a", "--retry-delay", "2m", "--retry-max-delay", "1m"}), 2);
  EXPECT_EQ(Parse({"--model", "a", "--swap-mode", "fast"}), 2);
  EXPECT_EQ(Parse({"--model", "a", "--swap-prewarm", "3"}), -1);
  EXPECT_EQ(Parse({"--model", "a", "--swap-prewarm", "3"}, Manifest::Kind::kTower), 2)
      << "of language models only";
}

TEST_F(LifecycleOptionsTest, HandsAllOn) {
  ASSERT_EQ(Parse({"--repository",      repository_.root(),
                   "--models",          "a,b",
                   "--version-policy",  "latest:2",
                   "--poll-interval",   "7s",
                   "--memory-budget",   "2G",
                   "--swap-mode",       "rolling",
                   "--load-threads",    "3",
                   "--load-rate",       "5M",
                   "--retry-delay",     "2s",
                   "--retry-max-delay", "1m"}),
            -1)
      << error_;
  const auto options = options_.Resolve(kLanguage);
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->root, repository_.root());
  EXPECT_THAT(options->names, ElementsAre("a", "b"));
  EXPECT_EQ(options->policy.ToString(), "latest:2");
  EXPECT_EQ(options->poll_interval, std::chrono::seconds(7));
  EXPECT_EQ(options->memory_budget, uint64_t{2} << 30);
  EXPECT_FALSE(options->soft_budget);
  EXPECT_EQ(options->swap_mode, SwapMode::kRolling);
  EXPECT_EQ(options->load_threads, 3);
  EXPECT_EQ(options->load_bytes_per_second, uint64_t{5} << 20);
  EXPECT_EQ(options->retry_delay, std::chrono::seconds(2));
  EXPECT_EQ(options->retry_max_delay, std::chrono::minutes(1));
  EXPECT_FALSE(options->must_start) << "a repository may be empty at the start";
  EXPECT_TRUE(options_.admin());
  ASSERT_EQ(Parse({"--model", "a", "--admin-calls", "refuse"}), -1);
  EXPECT_FALSE(options_.admin());
}

TEST(LoadLimitTest, IsAMultipleOfWhatAStepMayTake) {
  using std::chrono::minutes;
  EXPECT_EQ(LoadLimit(minutes(0)), minutes(0)) << "never";
  EXPECT_EQ(LoadLimit(std::chrono::seconds(1)), minutes(5));
  EXPECT_EQ(LoadLimit(minutes(5)), minutes(20));
}

TEST_F(LifecycleOptionsTest, WithoutABudgetTheMachineIsTheGuess) {
  repository_.Publish("emoji", 1);
  const auto options = Resolve(repository_.root() / "emoji");
  ASSERT_TRUE(options.ok());
  EXPECT_TRUE(options->soft_budget);
  EXPECT_EQ(options->memory_budget, HostMemoryBudget());
  EXPECT_GT(HostMemoryBudget(), uint64_t{100} << 20);
  EXPECT_LT(HostMemoryBudget(), uint64_t{1} << 50);
}

TEST_F(LifecycleOptionsTest, AModelOfARepositoryIsWatched) {
  repository_.Publish("emoji", 1);
  for (const std::string end : {"", "/", "/.", "/../emoji"}) {
    const auto options = Resolve((repository_.root() / "emoji").string() + end);
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_EQ(options->root, repository_.root());
    EXPECT_THAT(options->names, ElementsAre("emoji"));
    EXPECT_FALSE(options->fixed.has_value());
    EXPECT_TRUE(options->must_start);
    EXPECT_EQ(options->policy.ToString(), "auto");
  }
}

TEST_F(LifecycleOptionsTest, AVersionIsPinned) {
  repository_.Publish("emoji", 3);
  const auto options = Resolve(repository_.Folder("emoji", 3));
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->policy.ToString(), "3");
  EXPECT_EQ(options->root, repository_.root());
  EXPECT_THAT(options->names, ElementsAre("emoji"));
}

TEST_F(LifecycleOptionsTest, AVersionThatWasCopiedOutIsFixed) {
  repository_.Publish("emoji", 3);
  std::filesystem::copy(repository_.Folder("emoji", 3), repository_.root() / "copy");
  const auto options = Resolve(repository_.root() / "copy");
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->fixed.has_value());
  EXPECT_EQ(options->fixed->name, "emoji");
  EXPECT_EQ(options->fixed->version, 3U);
  EXPECT_EQ(options->fixed->folder, repository_.root() / "copy");
  EXPECT_TRUE(options->root.empty());
}

TEST_F(LifecycleOptionsTest, AnyOtherCheckpointIsFixed) {
  std::filesystem::create_directories(repository_.root() / "plain");
  TestRepository::Write(repository_.root() / "plain" / "config.json", "{}");
  const auto options = Resolve(repository_.root() / "plain");
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->fixed.has_value());
  EXPECT_EQ(options->fixed->name, "plain");
  EXPECT_EQ(options->fixed->version, 1U);
}

TEST_F(LifecycleOptionsTest, VersionsOfAModelAtATime) {
  const auto versions = [&](const std::string& policy, const std::string& mode) {
    EXPECT_EQ(Parse({"--repository", repository_.root(), "--version-policy", policy, "--swap-mode",
                     mode}),
              -1)
        << error_;
    const auto options = options_.Resolve(kLanguage);
    return std::pair(options->served_versions(), options->most_versions());
  };
  EXPECT_EQ(versions("latest", "auto"), std::pair(1, 2));
  EXPECT_EQ(versions("latest:3", "side_by_side"), std::pair(3, 4));
  EXPECT_EQ(versions("latest", "in_place"), std::pair(1, 1));
  EXPECT_EQ(versions("auto", "auto"), std::pair(2, 2)) << "there may be a canary";
  EXPECT_EQ(versions("labels", "rolling"), std::pair(2, 2));
  EXPECT_EQ(versions("3,5,7", "auto"), std::pair(3, 3));
  ModelManager::Options fixed;
  fixed.fixed = VersionRef{"m", 1, "/nowhere"};
  EXPECT_EQ(fixed.most_versions(), 1);
}

TEST_F(LifecycleOptionsTest, NothingThere) {
  std::filesystem::create_directories(repository_.root() / "empty");
  for (const std::string name : {"empty", "absent"}) {
    const auto options = Resolve(repository_.root() / name);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(options.status().message()), HasSubstr(name));
  }
  repository_.Publish("tower", 1, "good", Manifest::Kind::kTower);
  EXPECT_THAT(std::string(Resolve(repository_.Folder("tower", 1)).status().message()),
              HasSubstr("tower, not a language model"));
}

}  // namespace
}  // namespace llava
