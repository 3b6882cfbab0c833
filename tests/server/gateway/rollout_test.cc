// Versions, labels, canaries and their guard, as clients and operators see them.

#include <gmock/gmock.h>

#include <atomic>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/rollout_harness.h"

namespace llava {
namespace {

using grpc::StatusCode;
using std::chrono::milliseconds;
using testing::HasSubstr;

TEST_F(RolloutTest, EveryWayToSayWhichVersion) {
  Start({1, 2, 3});
  Label("stable", 2);
  const std::string session = NewSession();
  EXPECT_EQ(VersionOf(Question(session, "a")), 2u) << "stable, not the newest";
  auto question = Question(session, "b");
  question.mutable_model()->set_version(1);
  EXPECT_EQ(VersionOf(question), 1u) << "of the session's model";
  question = Question(session, "c");
  question.mutable_model()->set_name("emoji@3");
  EXPECT_EQ(VersionOf(question), 3u);
  Label("mine", 3);
  question = Question(session, "d");
  question.set_model_label("mine");
  EXPECT_EQ(VersionOf(question), 3u);
  question = Question(session, "e");
  question.mutable_model()->set_name("emoji@mine");
  EXPECT_EQ(VersionOf(question), 3u);
  EXPECT_EQ(VersionOf(Question(session, "f")), 2u) << "only that turn";

  v1::CreateSessionRequest create;
  create.set_model("emoji@mine");
  const std::string labelled = NewSession(create);
  EXPECT_EQ(VersionOf(Question(labelled, "a")), 3u);
  Label("mine", 1);
  EXPECT_EQ(VersionOf(Question(labelled, "b")), 1u) << "the session follows its label";
  v1::ChatServiceCountTokensRequest count;
  count.set_session_id(labelled);
  count.set_text("c");
  v1::ChatServiceCountTokensResponse counts;
  EXPECT_TRUE(stub_->CountTokens(Context().get(), count, &counts).ok());

  create.set_model("emoji@");
  v1::CreateSessionResponse created;
  EXPECT_EQ(stub_->CreateSession(Context().get(), create, &created).error_code(),
            StatusCode::INVALID_ARGUMENT);
  create.set_model("emoji@nobody");
  EXPECT_EQ(stub_->CreateSession(Context().get(), create, &created).error_code(),
            StatusCode::NOT_FOUND);
}

TEST_F(RolloutTest, ASessionMaySpanFiveVersions) {
  Start({1});
  const std::string session = NewSession();
  const std::string picture = FakePicture(1);
  for (uint64_t version = 1; version <= 5; ++version) {
    // The gateway has not heard of it when the question comes.
    llm_.models().Exchange({FakeLanguageModel("emoji", version)});
    const Answer answer =
        Ask(Question(session, absl::StrCat("question ", version),
                     version == 1 ? std::vector{picture} : std::vector<std::string>{}));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.started.model().version(), version);
    EXPECT_EQ(answer.finished.model().version(), version);
    EXPECT_THAT(answer.text, HasSubstr(absl::StrCat("turns: ", version))) << "nothing is forgotten";
  }
  EXPECT_EQ(vision_.encodes(), 1) << "the tower is the same";
  const auto turns = Turns(session);
  ASSERT_EQ(turns.size(), 5u);
  for (uint64_t version = 1; version <= 5; ++version) {
    EXPECT_EQ(turns[version - 1].model().version(), version);
    EXPECT_EQ(turns[version - 1].model().digest(),
              FakeLanguageModel("emoji", version).model().digest());
  }
}

TEST_F(RolloutTest, ANewVersionIsFoundSoon) {
  Start({1});
  const std::string session = NewSession();
  EXPECT_EQ(VersionOf(Question(session, "a")), 1u);
  Serve({1, 2});
  EXPECT_TRUE(Eventually([&] { return VersionOf(Question(session, "b")) == 2; }));
}

TEST_F(RolloutTest, WithoutAVersionTheTurnWaitsForOne) {
  Start({1});
  const std::string session = NewSession();
  // A language service that swaps in place serves nothing for a while.
  llm_.models().Exchange({});
  std::thread loads([this] {
    EXPECT_TRUE(Eventually([this] { return llm_.generates() == 1; })) << "and says so";
    std::this_thread::sleep_for(milliseconds(600));
    Serve({2});
  });
  EXPECT_EQ(VersionOf(Question(session, "a")), 2u);
  loads.join();
}

// Two processes get each version one after the other, and give up the one before, while answers
// run.
TEST_F(RolloutTest, NobodyNoticesThatVersionsComeAndGo) {
  constexpr uint64_t kLast = 10;
  FakeLlm other;
  options_.llm += "," + other.server().address();
  const auto serve = [&](FakeLlm& llm, const std::vector<uint64_t>& versions) {
    std::vector<v1::ModelInfo> models;
    for (const uint64_t version : versions) models.push_back(FakeLanguageModel("emoji", version));
    llm.models().Set(models);
    std::this_thread::sleep_for(kSlowdown * milliseconds(40));
  };
  for (FakeLlm* llm : {&llm_, &other}) llm->Set({.delay = milliseconds(3)});
  Start({1});
  std::atomic<bool> over = false;
  std::mutex mutex;
  std::set<uint64_t> answered;
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      const std::string session = NewSession();
      for (int turn = 1; !over || turn < 3; ++turn) {
        const Answer answer = Ask(
            Question(session, "a b c",
                     turn == 1 ? std::vector{FakePicture(client)} : std::vector<std::string>{}));
        EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
        EXPECT_EQ(answer.started.model().DebugString(), answer.finished.model().DebugString());
        EXPECT_EQ(answer.text, absl::StrCat("a b c! pictures: 1, turns: ", turn));
        EXPECT_TRUE(answer.offsets_fit);
        EXPECT_EQ(answer.events_after_end, 0);
        std::lock_guard lock(mutex);
        answered.insert(answer.finished.model().version());
      }
    });
  }
  for (uint64_t version = 2; version <= kLast; ++version) {
    serve(llm_, {version - 1, version});
    serve(other, {version - 1, version});
    serve(llm_, {version});
    serve(other, {version});
    // However slow the machine, it is the clients' pace.
    EXPECT_TRUE(Eventually([&] {
      std::lock_guard lock(mutex);
      return answered.contains(version);
    })) << version;
  }
  over = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GE(vision_.encodes(), 8);
  EXPECT_LE(vision_.encodes(), 16)
      << "all versions share the tower; a process needs each picture once";
}

TEST_F(RolloutTest, AVersionThatGoesInAnAnswerEndsItAsInterrupted) {
  options_.continue_timeout = std::chrono::milliseconds(500);
  Start({1});
  const std::string session = NewSession();
  llm_.Set({.fail_after_deltas = 2, .deaths = 1, .pause_after = 1});
  const Answer answer = Ask(Question(session, "a b c d"), [this](auto&, const Answer&) {
    llm_.models().Set({FakeLanguageModel("emoji", 2)});
    llm_.Set({});
    llm_.Release();
  });
  EXPECT_EQ(answer.status.error_code(), StatusCode::FAILED_PRECONDITION);
  const auto turns = Turns(session);
  ASSERT_EQ(turns.size(), 1u);
  EXPECT_EQ(turns[0].finish_reason(), v1::FINISH_REASON_INTERRUPTED);
  EXPECT_EQ(turns[0].model().version(), 1u);
  EXPECT_EQ(turns[0].answer_text(), answer.text);
  EXPECT_THAT(answer.text, testing::StartsWith("a b"));
  EXPECT_EQ(VersionOf(Question(session, "and now?")), 2u);
}

TEST_F(RolloutTest, SessionsStayWithTheCanaryTheyWereDrawnFor) {
  options_.rollout.mode = "off";
  Start({1, 2});
  Label("stable", 1);
  Label("canary", 2);
  std::set<std::string> canaries;
  std::vector<std::string> sessions;
  for (int i = 0; i < 40; ++i) {
    sessions.push_back(NewSession());
    if (VersionOf(Question(sessions.back(), "a")) == 2) canaries.insert(sessions.back());
  }
  EXPECT_GT(canaries.size(), 4u);  // of 40, as ids happen to be: five standard deviations
  EXPECT_LT(canaries.size(), 36u);
  v1::SetCanaryShareRequest share;
  share.set_name("emoji");
  share.set_share(0.7);
  v1::SetCanaryShareResponse shared;
  ASSERT_TRUE(rollouts_->SetCanaryShare(Context().get(), share, &shared).ok());
  EXPECT_EQ(shared.previous_share(), 0.5);
  for (const std::string& session : canaries) EXPECT_EQ(VersionOf(Question(session, "b")), 2u);
  share.set_share(0);
  ASSERT_TRUE(rollouts_->SetCanaryShare(Context().get(), share, &shared).ok());
  for (const std::string& session : canaries) EXPECT_EQ(VersionOf(Question(session, "c")), 1u);
  share.set_share(1.1);
  EXPECT_EQ(rollouts_->SetCanaryShare(Context().get(), share, &shared).error_code(),
            StatusCode::INVALID_ARGUMENT);
  share.set_share(1);
  share.set_name("nobody");
  EXPECT_EQ(rollouts_->SetCanaryShare(Context().get(), share, &shared).error_code(),
            StatusCode::NOT_FOUND);
}

TEST_F(RolloutTest, AGoodCanaryIsPromoted) {
  options_.rollout.mode = "auto";
  Start({1, 2});
  Label("stable", 1);
  Label("canary", 2);
  ASSERT_TRUE(Eventually([this] { return Rollout().canary().version() == 2; }));
  Traffic(25);
  ASSERT_TRUE(Eventually([this] { return Rollout().applied(); })) << Rollout().DebugString();
  const v1::Rollout rollout = Rollout();
  EXPECT_EQ(rollout.verdict(), v1::ROLLOUT_VERDICT_AS_GOOD);
  EXPECT_GE(rollout.canary_evidence().turns(), 20u);
  EXPECT_GE(rollout.stable_evidence().turns(), 10u);
  EXPECT_THAT(rollout.reason(), HasSubstr("turns failed"));
  EXPECT_EQ(Labels(2), std::set<std::string>({"stable"}));
  EXPECT_EQ(Labels(1), std::set<std::string>());
  EXPECT_EQ(Metric("llava_gateway_rollouts_total{model=\"emoji\",result=\"promoted\"}"), 1);
  EXPECT_EQ(Metric("llava_gateway_rollout_verdict{model=\"emoji\"}"), 1);
  EXPECT_TRUE(
      Eventually([this] { return Metric("llava_gateway_rollout_active{model=\"emoji\"}") == 0; }));
  EXPECT_EQ(VersionOf(Question(NewSession(), "a")), 2u);
}

TEST_F(RolloutTest, ACanaryThatFailsIsRolledBack) {
  options_.rollout.mode = "auto";
  Start({1, 2, 3});
  // Before there is a canary: else its end, at once, would be no increase to Prometheus.
  for (const std::string result : {"promoted", "rolled_back"}) {
    const std::string line =
        "llava_gateway_rollouts_total{model=\"emoji\",result=\"" + result + "\"} 0\n";
    EXPECT_TRUE(Eventually([&] { return metrics_->Render().find(line) != std::string::npos; }))
        << line;
  }
  Label("canary", 3);
  Label("stable", 1);
  ASSERT_TRUE(Eventually([this] { return Rollout().canary().version() == 3; }));
  for (int i = 0; i < 10; ++i) {
    auto question = Question(NewSession(), "a");
    question.set_model_label("stable");
    EXPECT_TRUE(Ask(question).status.ok());
  }
  llm_.Set({.failure = {StatusCode::INTERNAL, "the model gave no number"}, .failures = 10});
  for (int i = 0; i < 10; ++i) {
    auto question = Question(NewSession(), "a");
    question.set_model_label("canary");
    EXPECT_EQ(Ask(question).status.error_code(), StatusCode::INTERNAL);
  }
  ASSERT_TRUE(Eventually([this] { return Rollout().applied(); })) << Rollout().DebugString();
  EXPECT_EQ(Rollout().verdict(), v1::ROLLOUT_VERDICT_WORSE);
  EXPECT_EQ(Rollout().canary_evidence().failed_turns(), 10u);
  EXPECT_THAT(Rollout().reason(), HasSubstr("10 of 10 turns failed"));
  EXPECT_EQ(Labels(3), std::set<std::string>({"rejected-3"}));
  EXPECT_EQ(Labels(1), std::set<std::string>({"stable"}));
  EXPECT_EQ(Metric("llava_gateway_rollouts_total{model=\"emoji\",result=\"rolled_back\"}"), 1);
  Label("stable", 0);
  EXPECT_EQ(VersionOf(Question(NewSession(), "a")), 2u) << "the newest that was not rejected";
}

TEST_F(RolloutTest, WhoIsRefusedHasNotWaited) {
  Start({1, 2});
  Label("stable", 1);
  Label("canary", 2);
  ASSERT_TRUE(Eventually([this] { return Rollout().canary().version() == 2; }));
  const auto ask = [this](milliseconds timeout = kSlowdown * std::chrono::seconds(60)) {
    auto question = Question(NewSession(), "a");
    question.set_model_label("canary");
    return Ask(question, {}, timeout).status.error_code();
  };
  llm_.Set(
      {.failure = ToGrpc(OverloadedError("the queue is full", milliseconds(100))), .failures = 2});
  EXPECT_EQ(ask(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(ask(), StatusCode::OK);
  ASSERT_TRUE(Eventually([this] { return Rollout().canary_evidence().turns() == 1; }));
  EXPECT_EQ(Rollout().canary_evidence().given_up_turns(), 0U);
  llm_.Set({.pause_after = 0});
  const int before = llm_.generates();
  // Until one has come to the service before its time was over.
  for (int tries = 0; llm_.generates() == before && tries < 20; ++tries) {
    EXPECT_EQ(ask(kSlowdown * milliseconds(500)), StatusCode::DEADLINE_EXCEEDED);
  }
  EXPECT_TRUE(Eventually([this] { return Rollout().canary_evidence().given_up_turns() >= 1; }));
  llm_.Release();
}

TEST_F(RolloutTest, AVerdictThatCannotBeCarriedOutIsTriedAgain) {
  options_.rollout.mode = "auto";
  Start({1, 2});
  Label("stable", 1);
  Label("canary", 2);
  AwaitLook(2);
  llm_.models().Refuse({StatusCode::PERMISSION_DENIED, "labels.json cannot be written"});
  InitLogging({"test", "info", "text"});
  testing::internal::CaptureStderr();
  llm_.models().SetHealth(2, 0.01, 1);
  v1::Rollout failed;
  const bool tried = Eventually([&] {
    failed = Rollout();
    return !failed.apply_error().empty() && llm_.models().changes() > 5;
  });
  const std::string told = testing::internal::GetCapturedStderr();
  ASSERT_TRUE(tried);
  const std::string line = "verdict not carried out everywhere";
  EXPECT_NE(told.find(line), std::string::npos) << told;
  EXPECT_EQ(told.find(line), told.rfind(line)) << "once";
  EXPECT_EQ(Metric("llava_gateway_rollout_pending{model=\"emoji\"}"), 1);
  EXPECT_THAT(failed.apply_error(), HasSubstr("labels.json cannot be written"));
  EXPECT_FALSE(failed.applied());
  llm_.models().Refuse(grpc::Status::OK);
  ASSERT_TRUE(Eventually([this] { return Rollout().applied(); }));
  EXPECT_EQ(Metric("llava_gateway_rollout_pending{model=\"emoji\"}"), 0);
  EXPECT_EQ(Labels(2), std::set<std::string>({"rejected-2"}));
}

// Of two processes that share a repository one may never change it: the verdict is tried for ever,
// unless somebody says otherwise.
TEST_F(RolloutTest, AnOperatorOverrulesAPendingVerdict) {
  options_.rollout.mode = "auto";
  FakeLlm other;
  options_.llm += "," + other.server().address();
  std::vector<v1::ModelInfo> models;
  for (const uint64_t version : {1, 2, 3}) models.push_back(FakeLanguageModel("emoji", version));
  other.models().Set(models);
  other.models().ShareLabels(llm_.models());
  Start({1, 2, 3});
  Label("stable", 1);
  Label("canary", 2);
  other.models().Refuse({StatusCode::PERMISSION_DENIED, "labels.json cannot be written"});
  Traffic(25);
  ASSERT_TRUE(Eventually([this] { return !Rollout().apply_error().empty(); }));
  EXPECT_TRUE(Eventually([this] { return Labels(2).contains("stable"); }));
  // One process refuses each of these changes, too. The guard may be at it at the same moment.
  const auto label = [this](const std::string& name, uint64_t version) {
    v1::SetLabelRequest request;
    request.set_name("emoji");
    request.set_label(name);
    request.set_version(version);
    v1::SetLabelResponse response;
    EXPECT_EQ(models_->SetLabel(Context().get(), request, &response).error_code(),
              StatusCode::PERMISSION_DENIED);
  };
  EXPECT_TRUE(Eventually([&] {
    label("canary", 0);
    label("stable", 3);
    const int changes = other.models().changes();
    std::this_thread::sleep_for(10 * options_.rollout.period);
    return other.models().changes() == changes && Labels(3).contains("stable");
  })) << "for ten periods nobody set it otherwise";
  EXPECT_THAT(Rollout().apply_error(), HasSubstr("labels were changed"));
  EXPECT_FALSE(Rollout().applied());
  EXPECT_EQ(VersionOf(Question(NewSession(), "a")), 3u);
}

TEST_F(RolloutTest, OnlyAdminsChangeShares) {
  options_.keys_file = folder_.At("keys.yaml");
  std::ofstream(options_.keys_file)
      << "- {name: ann, sha256: " << ToHex(HashBytes("ann")) << "}\n"
      << "- {name: root, role: admin, sha256: " << ToHex(HashBytes("root")) << "}\n";
  Start({1});
  v1::SetCanaryShareRequest share;
  share.set_name("emoji");
  share.set_share(0.2);
  v1::SetCanaryShareResponse shared;
  v1::GetRolloutResponse rollouts;
  EXPECT_EQ(rollouts_->GetRollout(Context().get(), {}, &rollouts).error_code(),
            StatusCode::UNAUTHENTICATED);
  key_ = "ann";
  EXPECT_TRUE(rollouts_->GetRollout(Context().get(), {}, &rollouts).ok());
  EXPECT_EQ(rollouts_->SetCanaryShare(Context().get(), share, &shared).error_code(),
            StatusCode::PERMISSION_DENIED);
  key_ = "root";
  EXPECT_TRUE(rollouts_->SetCanaryShare(Context().get(), share, &shared).ok());
}

}  // namespace
}  // namespace llava
