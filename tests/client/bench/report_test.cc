#include "client/bench/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "client/bench/options.h"

namespace llava::bench {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(DescribeTest, PercentilesAreValuesThatOccurred) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Distribution result = Describe(values);
  EXPECT_EQ(result.count, 100u);
  EXPECT_DOUBLE_EQ(result.mean, 50.5);
  EXPECT_DOUBLE_EQ(result.median, 50);
  EXPECT_DOUBLE_EQ(result.p90, 90);
  EXPECT_DOUBLE_EQ(result.p99, 99);
  EXPECT_DOUBLE_EQ(result.max, 100);
}

TEST(DescribeTest, OneAndNone) {
  EXPECT_DOUBLE_EQ(Describe({7}).p99, 7);
  EXPECT_DOUBLE_EQ(Describe({7}).median, 7);
  EXPECT_EQ(Describe({}).count, 0u);
}

Samples TwoTurns() {
  Samples samples;
  samples.turns.push_back({.turn = 1,
                           .acknowledged = 0.01,
                           .first_text = 0.2,
                           .last_text = 0.6,
                           .total = 0.61,
                           .gaps = {0.1f, 0.3f},
                           .ages = {},
                           .pieces = 3,
                           .generated_tokens = 5,
                           .prompt_tokens = 30,
                           .cached_tokens = 0});
  samples.turns.push_back({.turn = 2,
                           .acknowledged = 0.03,
                           .first_text = 0.1,
                           .last_text = 0.1,
                           .total = 0.11,
                           .gaps = {},
                           .ages = {},
                           .pieces = 1,
                           .generated_tokens = 1,
                           .prompt_tokens = 50,
                           .cached_tokens = 40});
  samples.sessions = 1;
  samples.seconds = 2;
  samples.window_pieces = 4;
  samples.window_turns = 2;
  return samples;
}

TEST(ReportTest, FiguresOfTwoTurns) {
  const auto json = nlohmann::json::parse(Json(TwoTurns(), {}));
  EXPECT_EQ(json["turns"], 2);
  EXPECT_EQ(json["failed"], 0);
  EXPECT_EQ(json["generated_tokens"], 6);
  EXPECT_EQ(json["cached_tokens"], 40);
  EXPECT_DOUBLE_EQ(json["turns_per_second"], 1);
  EXPECT_DOUBLE_EQ(json["pieces_per_second"], 2);
  EXPECT_DOUBLE_EQ(json["tokens_per_second"], 3);  // 6 tokens came in 4 pieces
  EXPECT_DOUBLE_EQ(json["time_to_first_text_seconds"]["max"], 0.2);
  EXPECT_DOUBLE_EQ(json["time_to_first_text_by_turn"]["2"]["median"], 0.1);
  // 0.4 s from the first to the last of 5 tokens; an answer of one token has no such time.
  EXPECT_EQ(json["time_per_token_seconds"]["count"], 1);
  EXPECT_NEAR(json["time_per_token_seconds"]["mean"].get<double>(), 0.1, 1e-9);
  EXPECT_EQ(json["gap_seconds"]["count"], 2);
  EXPECT_FALSE(json.contains("age_seconds"));
}

TEST(ReportTest, FailuresAreCountedByCode) {
  Samples samples = TwoTurns();
  samples.Fail(absl::UnavailableError("first"));
  samples.Fail(absl::UnavailableError("second"));
  samples.Fail(absl::DataLossError("\xff gap"));
  const auto json = nlohmann::json::parse(Json(samples, {}));
  EXPECT_EQ(json["failed"], 3);
  EXPECT_EQ(json["errors"]["UNAVAILABLE"]["count"], 2);
  EXPECT_EQ(json["errors"]["UNAVAILABLE"]["first_message"].get<std::string>(), "first");
  EXPECT_EQ(json["errors"]["DATA_LOSS"]["count"], 1);
  EXPECT_THAT(Table(samples, {}), HasSubstr("UNAVAILABLE 2 times, first: first"));
}

TEST(ReportTest, TableTellsTurnsApartAndDropsWhatIsNotThere) {
  const std::string table = Table(TwoTurns(), {});
  EXPECT_THAT(table, HasSubstr("closed loop, 8 sessions at a time"));
  EXPECT_THAT(table, HasSubstr("2 done (1.00/s), 0 failed"));
  EXPECT_THAT(table, HasSubstr("50.0 % of them cached"));
  EXPECT_THAT(table, HasSubstr("  of turn 2"));
  EXPECT_THAT(table, Not(HasSubstr("from sender")));
  const std::string empty = Table({}, {.rate = 3});
  EXPECT_THAT(empty, HasSubstr("open loop, 3 sessions a second"));
  EXPECT_THAT(empty, HasSubstr("0 done"));
  EXPECT_THAT(empty, Not(HasSubstr("TTFT")));
}

std::variant<BenchOptions, int> Parse(std::vector<const char*> flags) {
  flags.insert(flags.begin(), "llava-bench");
  return ParseBenchOptions(static_cast<int>(flags.size()), flags.data());
}

TEST(BenchOptionsTest, FlagsReachTheLoad) {
  const std::string picture = testing::TempDir() + "bench-picture";
  const std::string prompts = testing::TempDir() + "bench-prompts";
  std::ofstream(picture) << "bytes";
  std::ofstream(prompts) << "what is it?\n\nand this?\n";
  const auto parsed =
      Parse({"--sessions", "16", "--rate", "2.5", "--turns", "4", "--ignore-eos",
             "--max-new-tokens", "9", "--timeout", "1.5", "--picture", picture.c_str(), "--picture",
             picture.c_str(), "--prompts", prompts.c_str()});
  const auto& options = std::get<BenchOptions>(parsed);
  EXPECT_EQ(options.load.sessions, 16);
  EXPECT_DOUBLE_EQ(options.load.rate, 2.5);
  EXPECT_EQ(options.load.turns, 4);
  EXPECT_TRUE(options.load.sampling.ignore_eos());
  EXPECT_EQ(options.load.sampling.max_new_tokens(), 9u);
  EXPECT_EQ(options.load.timeout, std::chrono::milliseconds(1500));
  EXPECT_THAT(options.load.pictures, testing::ElementsAre("bytes", "bytes"));
  EXPECT_THAT(options.load.prompts, testing::ElementsAre("what is it?", "and this?"));
}

TEST(BenchOptionsTest, RefusesWhatMakesNoSense) {
  for (const auto& flags :
       std::vector<std::vector<const char*>>{{"--sessions", "0"},
                                             {"--rate", "-1"},
                                             {"--seconds", "0"},
                                             {"--unique-pictures"},
                                             {"--prompts", "f", "--prompt-words", "3"},
                                             {"--prompts", "/dev/null"},
                                             {"--picture", "/no/picture"},
                                             {"--colour", "red"}}) {
    const auto parsed = Parse(flags);
    ASSERT_TRUE(std::holds_alternative<int>(parsed)) << flags[0];
    EXPECT_EQ(std::get<int>(parsed), 2) << flags[0];
  }
}

}  // namespace
}  // namespace llava::bench
