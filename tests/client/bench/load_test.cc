#include "client/bench/load.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "tests/client/fake_gateway.h"

namespace llava::bench {
namespace {

using testing::HasSubstr;

class LoadTest : public testing::Test {
 protected:
  Samples Run(const LoadOptions& options) {
    return RunLoad({channel_}, options, stop_, [](const Progress&) {});
  }

  FakeGateway gateway_;
  const std::shared_ptr<grpc::Channel> channel_ =
      grpc::CreateChannel(gateway_.address(), grpc::InsecureChannelCredentials());
  std::atomic<bool> stop_{false};
};

TEST_F(LoadTest, SessionsAskTheirTurnsAndAreDeleted) {
  const Samples samples =
      Run({.sessions = 2, .turns = 3, .seconds = 600, .max_turns = 12, .prompts = {"What is it?"}});
  EXPECT_GE(samples.turns.size(), 12u);
  EXPECT_EQ(samples.failed(), 0u);
  EXPECT_LT(samples.seconds, 300);
  EXPECT_EQ(gateway_.deleted().size(), gateway_.created().size());
  std::set<uint32_t> turns;
  for (const TurnSample& turn : samples.turns) {
    turns.insert(turn.turn);
    EXPECT_GT(turn.pieces, 0u);
    EXPECT_LE(turn.acknowledged, turn.first_text);
    EXPECT_LE(turn.first_text, turn.total);
    EXPECT_EQ(turn.gaps.size() + 1, turn.pieces);
  }
  EXPECT_EQ(turns, (std::set<uint32_t>{1, 2, 3}));
  for (const v1::ChatRequest& request : gateway_.asked()) EXPECT_EQ(request.text(), "What is it?");
}

TEST_F(LoadTest, PicturesGoWithFirstQuestionsOnlyAndAreAllDifferent) {
  Run({.sessions = 1,
       .turns = 2,
       .seconds = 600,
       .max_turns = 6,
       .pictures = {"picture"},
       .unique_pictures = true});
  std::set<std::string> pictures;
  size_t with = 0;
  for (const v1::ChatRequest& request : gateway_.asked()) {
    if (request.images().empty()) continue;
    ++with;
    EXPECT_TRUE(request.images(0).data().starts_with("picture"));
    pictures.insert(request.images(0).data());
  }
  EXPECT_GE(with, 3u);
  EXPECT_EQ(pictures.size(), with);
  EXPECT_EQ(gateway_.created().size(), with);
}

TEST_F(LoadTest, OpenLoopDropsWhatIsTooMuch) {
  gateway_.set_script({.events = {Started("s", "t")}, .status = {}, .wait_for_cancel = true});
  const Samples samples = Run({.sessions = 2,
                               .rate = 200,
                               .turns = 1,
                               .idle_sessions = 3,
                               .seconds = 1,
                               .timeout = std::chrono::seconds(5)});
  EXPECT_EQ(samples.sessions, 2u) << "those that idle are none of them";
  EXPECT_GT(samples.dropped_sessions, 20u);
  ASSERT_TRUE(samples.failures.contains("DEADLINE_EXCEEDED"));
  EXPECT_EQ(samples.failures.at("DEADLINE_EXCEEDED").count, 2u);
}

TEST_F(LoadTest, AnswersWithHolesAreFailures) {
  gateway_.set_script(
      {.events = {Started("s", "t"), Text(0, "ab"), Text(3, "c"), Finished(4)}, .status = {}});
  std::thread stopper([&] {
    gateway_.WaitForQuestions(3);  // it tries again
    stop_.store(true);
  });
  const Samples samples = Run({.sessions = 1, .turns = 1, .seconds = 600});
  stopper.join();
  EXPECT_TRUE(samples.turns.empty());
  EXPECT_THAT(samples.failures.at("DATA_LOSS").first_message, HasSubstr("byte 3"));
  EXPECT_GT(samples.sessions, 1u);
}

TEST_F(LoadTest, AgesOfStamps) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const std::string stamp = std::to_string(now) + " ";
  gateway_.set_script(
      {.events = {Started("s", "t"), Text(0, stamp), Finished(stamp.size())}, .status = {}});
  const Samples samples =
      Run({.sessions = 1, .turns = 1, .seconds = 600, .max_turns = 1, .stamps = true});
  ASSERT_FALSE(samples.turns.empty());
  ASSERT_EQ(samples.turns[0].ages.size(), 1u);
  EXPECT_GT(samples.turns[0].ages[0], 0);
  EXPECT_LT(samples.turns[0].ages[0], 60);
}

TEST_F(LoadTest, IdleSessionsAreHeldAndDeletedAtTheEnd) {
  const Samples samples =
      Run({.sessions = 1, .turns = 1, .idle_sessions = 5, .seconds = 600, .max_turns = 2});
  EXPECT_EQ(samples.sessions + 5, gateway_.created().size());
  EXPECT_EQ(gateway_.deleted().size(), gateway_.created().size());
}

TEST_F(LoadTest, StopsWhenAsked) {
  std::thread stopper([&] {
    gateway_.WaitForQuestions(3);
    stop_.store(true);
  });
  const Samples samples = Run({.sessions = 1, .turns = 1, .seconds = 600});
  stopper.join();
  EXPECT_LT(samples.seconds, 300);
  EXPECT_GE(samples.turns.size(), 2u);
}

TEST_F(LoadTest, WhoStopsItDoesNotWaitForAnswers) {
  gateway_.set_script({.events = {Started("s", "t")}, .status = {}, .wait_for_cancel = true});
  std::thread stopper([&] {
    gateway_.WaitForQuestions(2);
    stop_.store(true);
  });
  const auto begin = std::chrono::steady_clock::now();
  const Samples samples =
      Run({.sessions = 2, .turns = 3, .seconds = 600, .timeout = std::chrono::hours(1)});
  stopper.join();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(5));
  EXPECT_TRUE(samples.turns.empty());
  EXPECT_EQ(samples.failed(), 0u) << "it says nothing of the gateway";
  EXPECT_EQ(gateway_.deleted().size(), gateway_.created().size());
}

}  // namespace
}  // namespace llava::bench
