// Sessions that nobody uses any more.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/server/gateway/session_store_harness.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

using SessionExpiryTest = SessionStoreTest;

TEST_F(SessionExpiryTest, UnusedSessionsExpire) {
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
  auto database = SqlDatabase::Open(folder_.At("sessions.db"));
  ASSERT_TRUE((*database)->Script("UPDATE sessions SET used_us = used_us - 7200000000").ok());
  database->reset();
  Open();
  const auto expire = [this](std::chrono::seconds default_expiry) {
    return Await<absl::StatusOr<Removed>>([&](auto done) {
             store_->Expire(
                 default_expiry, [](const std::string& id) { return id == "busy"; }, done);
           })
        ->sessions;
  };
  EXPECT_THAT(expire(std::chrono::seconds(0)), ElementsAre("hour"));
  EXPECT_FALSE(Read("hour").ok());
  EXPECT_THAT(expire(std::chrono::hours(1)), ElementsAre("default"));
  EXPECT_FALSE(Read("default").ok());
  for (const char* id : {"busy", "running", "day"}) EXPECT_TRUE(Read(id).ok()) << id;
}

TEST_F(SessionExpiryTest, UseIsKnownAtOnceAndSurvivesACrashWhereItMatters) {
  Open();
  for (const char* id : {"a", "b"}) Create(id);
  const int64_t created = Read("a")->session.last_used_time().nanos();
  ASSERT_TRUE(Begin("a", "t").ok());
  EXPECT_NE(Read("a")->session.last_used_time().nanos(), created);
  const auto page = [this] {
    return *Await<absl::StatusOr<SessionPage>>(
        [&](auto done) { store_->ListSessions(std::nullopt, 10, "", done); });
  };
  EXPECT_EQ(page().sessions.at(0).id(), "a");
  TurnResult result;
  result.session_id = "a";
  result.turn_id = "t";
  ASSERT_TRUE(Await<absl::Status>([&](auto done) { store_->FinishTurn(result, done); }).ok());
  store_.reset();
  // As after a crash that took the time of the last use away.
  auto database = SqlDatabase::Open(folder_.At("sessions.db"));
  ASSERT_TRUE((*database)->Script("UPDATE sessions SET used_us = used_us - 7200000000").ok());
  database->reset();
  Open();
  const auto expired = Await<absl::StatusOr<Removed>>([&](auto done) {
    store_->Expire(
        std::chrono::hours(1), [](const std::string&) { return false; }, done);
  });
  EXPECT_THAT(expired->sessions, ElementsAre("b"));
  EXPECT_TRUE(Read("a").ok()) << "its turn ended just now";
  EXPECT_FALSE(Read("b").ok());
}

TEST_F(SessionExpiryTest, AHundredGoAtATimeAndItIsToldWhetherThatIsAll) {
  Open();
  for (int i = 0; i < 250; ++i) {
    v1::Session session;
    session.set_id(absl::StrCat(i));
    session.mutable_idle_expiry()->set_nanos(1000);
    store_->CreateSession(session, [](const auto& made) { ASSERT_TRUE(made.ok()); });
  }
  const auto expire = [this](bool busy) {
    return *Await<absl::StatusOr<Removed>>([&](auto done) {
      store_->Expire(
          std::chrono::seconds(0), [busy](const std::string&) { return busy; }, done);
    });
  };
  EXPECT_FALSE(expire(/*busy=*/true).more) << "it would be asked for them again at once";
  for (const size_t count : {100, 100, 50}) {
    const Removed removed = expire(/*busy=*/false);
    EXPECT_EQ(removed.sessions.size(), count);
    EXPECT_EQ(removed.more, count == 100);
  }
}

TEST_F(SessionExpiryTest, ExpiredSessionsAreFoundWithoutALookAtAllOthers) {
  Open();
  store_.reset();
  auto database = SqlDatabase::Open(folder_.At("sessions.db"));
  ASSERT_TRUE(database.ok()) << database.status();
  std::string plan;
  const auto asked =
      (*database)->Query(absl::StrCat("EXPLAIN QUERY PLAN ", StoreTables::kExpiredSessions),
                         {int64_t{1}, int64_t{2}, int64_t{3}},
                         [&](const SqlRow& row) { absl::StrAppend(&plan, row.Text(3), "\n"); });
  ASSERT_TRUE(asked.ok()) << asked;
  EXPECT_THAT(plan, HasSubstr("sessions_by_own_expiry"));
  EXPECT_THAT(plan, HasSubstr("sessions_by_default_expiry"));
  for (const char* table : {"SCAN sessions", "SCAN turns", "SCAN running_turns"}) {
    EXPECT_THAT(plan, Not(HasSubstr(table)));
  }
}

}  // namespace
}  // namespace llava
