#include "server/gateway/session_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <optional>

#include "server/gateway/store_schema.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;

class SessionStoreTest : public testing::Test {
 protected:
  void Open() {
    store_.reset();
    auto store = SessionStore::Open(folder_.path(), gateway_metrics_, options_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  // Waits for what a request of the store calls back with.
  template <typename Result>
  static Result Await(const std::function<void(std::function<void(Result)>)>& request) {
    auto result = std::make_shared<std::promise<Result>>();
    request([result](Result value) { result->set_value(std::move(value)); });
    return result->get_future().get();
  }

  void Create(const std::string& id) {
    v1::Session session;
    session.set_id(id);
    const auto created = Await<absl::StatusOr<v1::Session>>(
        [&](auto done) { store_->CreateSession(session, done); });
    ASSERT_TRUE(created.ok()) << created.status();
  }

  absl::StatusOr<v1::Turn> Begin(const std::string& session, const std::string& turn,
                                 const RequestKey& request = {}) {
    NewTurn record;
    record.request = request;
    record.sampling.set_max_new_tokens(77);
    record.id = turn;
    record.session_id = session;
    record.user_text = "hello";
    record.seed = 0xffff'ffff'ffff'fff0;
    return Await<absl::StatusOr<v1::Turn>>([&](auto done) { store_->BeginTurn(record, done); });
  }

  absl::StatusOr<Conversation> Read(const std::string& session, const RequestKey& request = {}) {
    return Await<absl::StatusOr<Conversation>>(
        [&](auto done) { store_->GetConversation(session, request, done); });
  }

  absl::Status Finish(const TurnResult& result) {
    return Await<absl::Status>([&](auto done) { store_->FinishTurn(result, done); });
  }

  TempFolder folder_;
  SessionStore::Options options_;
  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  std::unique_ptr<SessionStore> store_;
};

TEST_F(SessionStoreTest, TurnsLeftRunningAreToldAtTheNextStart) {
  Open();
  EXPECT_TRUE(store_->TakeUnfinished().empty());
  Create("s");
  ASSERT_TRUE(Begin("s", "t").ok());
  Open();
  const auto unfinished = store_->TakeUnfinished();
  ASSERT_EQ(unfinished.size(), 1U);
  EXPECT_EQ(unfinished[0].session_id, "s");
  EXPECT_EQ(unfinished[0].turn_id, "t");
  EXPECT_EQ(unfinished[0].sampling.max_new_tokens(), 77U);
  const v1::Turn turn = Read("s")->turns[0].turn;
  EXPECT_EQ(turn.state(), v1::TURN_STATE_RUNNING);
  EXPECT_EQ(turn.seed(), 0xffff'ffff'ffff'fff0) << "unsigned numbers survive";
}

TEST_F(SessionStoreTest, ARequestIsKnownAgainByItsKey) {
  Open();
  Create("s");
  Create("r");
  const RequestKey key{"key", "hash"};
  ASSERT_TRUE(Begin("s", "t", key).ok());
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "t");
  EXPECT_EQ(Read("s", {"other", "hash"})->repeated_turn_id, "");
  EXPECT_EQ(Read("r", key)->repeated_turn_id, "") << "keys belong to their session";
  const auto other = Read("s", {"key", "changed"});
  EXPECT_EQ(other.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("turn t"));

  TurnResult result;
  result.session_id = "s";
  result.turn_id = "t";
  result.state = v1::TURN_STATE_FINISHED;
  result.reason = v1::FINISH_REASON_STOP;
  ASSERT_TRUE(Finish(result).ok());
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "t");
  result.reason = v1::FINISH_REASON_ERROR;
  ASSERT_TRUE(Finish(result).ok());
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "") << "nothing was told: it may be asked again";

  ASSERT_TRUE(Begin("s", "u", key).ok());
  store_.reset();
  auto database = SqlDatabase::Open(folder_.path() + "/sessions.db");
  ASSERT_TRUE((*database)
                  ->Script("UPDATE idempotency_keys SET created_us = created_us - 86400000000")
                  .ok());
  database->reset();
  Open();
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "") << "a day is over";
}

TEST_F(SessionStoreTest, UnusedSessionsExpire) {
  Open();
  const auto create = [this](const std::string& id, int64_t idle_seconds) {
    v1::Session session;
    session.set_id(id);
    if (idle_seconds > 0) session.mutable_idle_expiry()->set_seconds(idle_seconds);
    return Await<absl::StatusOr<v1::Session>>(
        [&](auto done) { store_->CreateSession(session, done); });
  };
  EXPECT_EQ(create("hour", 3600)->idle_expiry().seconds(), 3600);
  EXPECT_FALSE(create("default", 0)->has_idle_expiry());
  ASSERT_TRUE(create("busy", 3600).ok());
  ASSERT_TRUE(create("running", 3600).ok());
  ASSERT_TRUE(create("day", 86400).ok());
  ASSERT_TRUE(Begin("running", "t").ok());
  store_.reset();
  auto database = SqlDatabase::Open(folder_.path() + "/sessions.db");
  ASSERT_TRUE((*database)->Script("UPDATE sessions SET used_us = used_us - 7200000000").ok());
  database->reset();
  Open();
  const auto expire = [this](std::chrono::seconds default_expiry) {
    return *Await<absl::StatusOr<int64_t>>([&](auto done) {
      store_->Expire(
          default_expiry, [](const std::string& id) { return id == "busy"; }, done);
    });
  };
  EXPECT_EQ(expire(std::chrono::seconds(0)), 1);
  EXPECT_FALSE(Read("hour").ok());
  EXPECT_EQ(expire(std::chrono::hours(1)), 1);
  EXPECT_FALSE(Read("default").ok());
  for (const char* id : {"busy", "running", "day"}) EXPECT_TRUE(Read(id).ok()) << id;
}

TEST_F(SessionStoreTest, SessionsHaveTheirLimits) {
  options_.limits = {.turns_per_session = 2, .images_per_session = 1};
  Open();
  Create("s");
  ASSERT_TRUE(Begin("s", "t").ok());
  ASSERT_TRUE(Begin("s", "u").ok());
  const auto third = Begin("s", "v");
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("allowed are 2"));
  const auto add = [this](char letter) {
    StoredImage image;
    image.info.set_id(std::string(64, letter));
    image.bytes = std::make_shared<const std::string>("bytes");
    return Await<absl::Status>([&](auto done) { store_->AddImage("s", image, done); });
  };
  EXPECT_TRUE(add('a').ok());
  EXPECT_TRUE(add('a').ok()) << "the same one again";
  EXPECT_EQ(add('b').code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SessionStoreTest, AnswersComeBackWithTheirIds) {
  Open();
  Create("s");
  ASSERT_TRUE(Begin("s", "t").ok());
  TurnResult result;
  result.session_id = "s";
  result.turn_id = "t";
  result.state = v1::TURN_STATE_FINISHED;
  result.reason = v1::FINISH_REASON_LENGTH;
  result.answer_text = std::string("a\0b", 3);
  result.tokens.set_tokenizer_digest(std::string("\0\1", 2));
  for (const int id : {1, -2, 70'000}) result.tokens.add_ids(id);
  result.usage.set_generated_tokens(3);
  ASSERT_TRUE(Await<absl::Status>([&](auto done) { store_->FinishTurn(result, done); }).ok());
  Open();
  const auto conversation = Read("s");
  const StoredTurn& stored = conversation->turns.at(0);
  EXPECT_EQ(stored.turn.answer_text(), result.answer_text);
  EXPECT_EQ(stored.turn.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(stored.tokens.SerializeAsString(), result.tokens.SerializeAsString());
  EXPECT_EQ(stored.turn.usage().generated_tokens(), 3U);
  EXPECT_GE(stored.turn.finish_time().seconds(), stored.turn.create_time().seconds());
}

TEST_F(SessionStoreTest, ARequestThatFailsTakesBackOnlyItself) {
  Open();
  Create("s");
  NewTurn record;
  record.id = "t";
  record.session_id = "s";
  record.images.push_back({});  // a picture that the session does not have
  record.images[0].info.set_id("unknown");
  std::promise<absl::Status> failed;
  store_->BeginTurn(record, [&](auto turn) { failed.set_value(turn.status()); });
  ASSERT_TRUE(Begin("s", "u").ok());
  EXPECT_EQ(failed.get_future().get().code(), absl::StatusCode::kNotFound);
  const auto conversation = Read("s");
  ASSERT_EQ(conversation->turns.size(), 1U);
  EXPECT_EQ(conversation->turns[0].turn.id(), "u");
  EXPECT_EQ(conversation->turns[0].turn.number(), 1U);
}

TEST_F(SessionStoreTest, AFolderBelongsToOneGateway) {
  Open();
  const auto second = SessionStore::Open(folder_.path(), gateway_metrics_, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use by another gateway"));
}

TEST_F(SessionStoreTest, RefusesAFileOfANewerProgram) {
  Open();
  store_.reset();
  auto database = SqlDatabase::Open(folder_.path() + "/sessions.db");
  ASSERT_TRUE((*database)->Script("UPDATE schema_version SET version = 1000").ok());
  EXPECT_EQ(MigrateStore(**database).code(), absl::StatusCode::kFailedPrecondition);
  database->reset();
  const auto store = SessionStore::Open(folder_.path(), gateway_metrics_, {});
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("schema version 1000"));
}

TEST_F(SessionStoreTest, RefusesAFileThatIsNoDatabase) {
  std::ofstream(folder_.path() + "/sessions.db") << std::string(4096, 'x');
  const auto store = SessionStore::Open(folder_.path(), gateway_metrics_, {});
  EXPECT_FALSE(store.ok());
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("sessions.db"));
}

TEST_F(SessionStoreTest, SweepsFilesThatACrashLeft) {
  Open();
  store_.reset();
  const std::string stray = folder_.path() + "/images/" + std::string(64, 'a');
  std::ofstream(stray) << "x";
  std::ofstream(stray + ".tmp") << "x";
  Open();
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path() + "/images"));
}

TEST_F(SessionStoreTest, APictureSentAgainWhileItsLastSessionGoesStays) {
  Open();
  Create("a");
  Create("b");
  StoredImage image;
  image.info.set_id(std::string(64, 'c'));
  image.info.set_format("bmp");
  image.bytes = std::make_shared<const std::string>("bytes");
  std::vector<std::future<absl::Status>> results;
  const auto keep = [&results] {
    auto promise = std::make_shared<std::promise<absl::Status>>();
    results.push_back(promise->get_future());
    return [promise](const absl::Status& status) { promise->set_value(status); };
  };
  store_->AddImage("a", image, keep());
  store_->DeleteSession("a", keep());  // in one batch with the next, if they are quick
  store_->AddImage("b", image, keep());
  for (auto& result : results) EXPECT_TRUE(result.get().ok());
  const auto bytes = Await<absl::StatusOr<std::string>>(
      [&](auto done) { store_->ReadImage(image.info.id(), done); });
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, "bytes");
}

TEST_F(SessionStoreTest, AFullQueueRefusesAllButTheEndOfTurns) {
  options_.max_waiting = 2;
  Open();
  std::promise<void> release;
  std::promise<void> blocked;
  store_->GetSession("x", [&](auto) {
    blocked.set_value();
    release.get_future().wait();
  });
  blocked.get_future().wait();  // the store's thread is busy; two may wait
  std::vector<absl::StatusCode> codes(4, absl::StatusCode::kOk);
  std::promise<void> all;
  std::atomic<int> left = 4;
  const auto note = [&](int i) {
    return [&, i](const auto& result) {
      if constexpr (requires { result.status(); }) {
        codes[i] = result.status().code();
      } else {
        codes[i] = result.code();
      }
      if (--left == 0) all.set_value();
    };
  };
  store_->GetSession("x", note(0));
  store_->GetSession("x", note(1));
  EXPECT_EQ(gateway_metrics_.store_queue.Value(), 2);
  store_->GetSession("x", note(2));
  store_->FinishTurn({}, note(3));
  release.set_value();
  all.get_future().wait();
  EXPECT_EQ(codes[0], absl::StatusCode::kNotFound);
  EXPECT_EQ(codes[1], absl::StatusCode::kNotFound);
  EXPECT_EQ(codes[2], absl::StatusCode::kUnavailable);
  EXPECT_EQ(codes[3], absl::StatusCode::kOk);
}

TEST_F(SessionStoreTest, WritesThatWaitTogetherShareACommit) {
  Open();
  std::promise<void> release;
  store_->GetSession("x", [&](auto) { release.get_future().wait(); });
  std::promise<void> all;
  std::atomic<int> left = 100;
  for (int i = 0; i < 100; ++i) {
    v1::Session session;
    session.set_id(std::to_string(i));
    store_->CreateSession(session, [&](auto created) {
      EXPECT_TRUE(created.ok());
      if (--left == 0) all.set_value();
    });
  }
  release.set_value();
  all.get_future().wait();
  const std::string text = metrics_.Render();
  const std::string name = "llava_gateway_store_commit_seconds_count ";
  EXPECT_LE(std::stod(text.substr(text.find(name) + name.size())), 3);
}

}  // namespace
}  // namespace llava
