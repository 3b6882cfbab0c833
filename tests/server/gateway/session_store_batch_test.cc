// Requests that share a transaction: what one of them does to the others.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/gateway/session_store.h"
#include "tests/server/gateway/no_space.h"
#include "tests/support/eventually.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::IsEmpty;

class SessionStoreBatchTest : public testing::Test {
 protected:
  SessionStoreBatchTest() {
    auto store = SessionStore::Open(folder_.path(), gateway_metrics_, {});
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    for (const char* id : {"a", "b", "c"}) {
      v1::Session session;
      session.set_id(id);
      EXPECT_TRUE(Take<absl::StatusOr<v1::Session>>(
                      [&](auto done) { store_->CreateSession(session, done); })
                      .get()
                      .ok());
    }
  }
  template <typename Result>
  std::future<Result> Take(const std::function<void(std::function<void(Result)>)>& request) {
    auto promise = std::make_shared<std::promise<Result>>();
    request([promise](Result result) { promise->set_value(std::move(result)); });
    return promise->get_future();
  }
  // What is asked from now on waits until Release, and is one batch then.
  void Block() {
    auto blocked = std::make_shared<std::promise<void>>();
    release_ = std::make_shared<std::promise<void>>();
    store_->GetSession("x", [blocked, release = release_](const auto&) {
      blocked->set_value();
      release->get_future().wait();
    });
    blocked->get_future().wait();
  }
  void Release() { release_->set_value(); }
  // A commit that writes a turn fails, though all statements before it went well.
  void RefuseCommits() {
    Script(
        "CREATE TABLE parents (id INTEGER PRIMARY KEY);"
        "CREATE TABLE children (id REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);"
        "CREATE TRIGGER refuse AFTER INSERT ON turns BEGIN INSERT INTO children VALUES (1); END");
  }
  void Script(const std::string& sql) {
    auto database = SqlDatabase::Open(folder_.At("sessions.db"));
    ASSERT_TRUE(database.ok()) << database.status();
    const auto status = (*database)->Script(sql);
    ASSERT_TRUE(status.ok()) << status;
  }
  static NewTurn Turn(const std::string& session, const std::vector<StoredImage>& images = {}) {
    NewTurn turn;
    turn.id = "turn-of-" + session;
    turn.session_id = session;
    turn.images = images;
    return turn;
  }
  static StoredImage Image(char letter) {
    StoredImage image;
    image.info.set_id(std::string(64, letter));
    image.info.set_format("bmp");
    image.bytes = std::make_shared<const std::string>("bytes");
    return image;
  }
  std::future<absl::StatusOr<uint32_t>> Begin(const NewTurn& turn) {
    return Take<absl::StatusOr<uint32_t>>([&](auto done) { store_->BeginTurn(turn, done); });
  }
  std::future<absl::StatusOr<v1::Session>> Get(const std::string& id) {
    return Take<absl::StatusOr<v1::Session>>([&](auto done) { store_->GetSession(id, done); });
  }
  std::filesystem::path images() const { return folder_.At("images"); }

  TempFolder folder_;
  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  std::unique_ptr<SessionStore> store_;
  std::shared_ptr<std::promise<void>> release_;
};

TEST_F(SessionStoreBatchTest, WhatIsUnderWayIsShownAsAQueue) {
  const auto queue = [this] { return gateway_metrics_.store_queue.Value(); };
  Block();  // as a disk that hangs
  EXPECT_EQ(queue(), 1);
  auto waiting = Get("a");
  EXPECT_EQ(queue(), 2);
  Release();
  EXPECT_TRUE(waiting.get().ok());
  EXPECT_TRUE(Eventually([&] { return queue() == 0; }));
}

TEST_F(SessionStoreBatchTest, ALogThatCannotBeBroughtIntoTheTablesIsCounted) {
  const auto failures = [this] { return gateway_metrics_.store_failures_total.Value(); };
  {
    const NoSpace full("sessions.db");  // not the log
    ASSERT_TRUE(Begin(Turn("a")).get().ok());
    TurnResult result;
    result.session_id = "a";
    result.turn_id = Turn("a").id;
    result.answer_text = std::string(8u << 20, 'a');
    ASSERT_TRUE(
        Take<absl::Status>([&](auto done) { store_->FinishTurn(result, done); }).get().ok());
    EXPECT_TRUE(Eventually([&] { return failures() >= 1; }));
  }
  const double before = failures();
  ASSERT_TRUE(Begin(Turn("b")).get().ok());
  EXPECT_EQ(failures(), before);
}

TEST_F(SessionStoreBatchTest, AReadDoesNotFailWithTheWritesBesideIt) {
  RefuseCommits();
  Block();
  auto session = Get("a");
  auto begun = Begin(Turn("b"));
  auto conversation = Take<absl::StatusOr<Conversation>>(
      [&](auto done) { store_->GetConversation("b", {}, done); });
  auto page = Take<absl::StatusOr<SessionPage>>(
      [&](auto done) { store_->ListSessions(std::nullopt, 10, "", done); });
  Release();
  EXPECT_EQ(begun.get().status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(session.get().ok());
  const auto read = conversation.get();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(read->turns, IsEmpty()) << "which was taken back";
  EXPECT_EQ(page.get()->sessions.size(), 3U);
  EXPECT_EQ(gateway_metrics_.store_failures_total.Value(), 1);
}

// When sessions were used is written down with other things, and waits for room like these.
TEST_F(SessionStoreBatchTest, AFullDiskStopsNoReadHoweverManySessionsWereUsed) {
  constexpr int kUsed = 1010;  // more than are kept in memory, fewer than may wait
  std::vector<std::future<absl::StatusOr<v1::Session>>> made;
  std::vector<std::future<absl::StatusOr<uint32_t>>> begun;
  const auto name = [](int i) { return absl::StrCat("s", i); };
  const auto list = [this] {
    return Take<absl::StatusOr<SessionPage>>(
               [&](auto done) { store_->ListSessions(std::nullopt, 10, "", done); })
        .get();
  };
  for (int i = 0; i < kUsed; ++i) {
    v1::Session session;
    session.set_id(name(i));
    made.push_back(Take<absl::StatusOr<v1::Session>>(
        [&](auto done) { store_->CreateSession(session, done); }));
  }
  for (auto& each : made) ASSERT_TRUE(each.get().ok());
  Block();
  for (int i = 0; i < kUsed; ++i) begun.push_back(Begin(Turn(name(i))));
  Release();
  for (auto& each : begun) ASSERT_TRUE(each.get().ok());
  {
    const NoSpace full;
    EXPECT_TRUE(Get("a").get().ok());
    const auto page = list();
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_EQ(page->sessions.size(), 10U);
    EXPECT_FALSE(Begin(Turn("b")).get().ok());
    EXPECT_TRUE(Get("a").get().ok());
  }
  ASSERT_TRUE(Begin(Turn("c")).get().ok());
  const auto page = list();
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->sessions.at(0).id(), "c") << "the order is written down with the next turn";
}

TEST_F(SessionStoreBatchTest, ThePictureOfARefusedQuestionGoesAgain) {
  StoredImage unknown;
  unknown.info.set_id("unknown");
  EXPECT_EQ(Begin(Turn("a", {Image('1'), unknown})).get().status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(std::filesystem::is_empty(images()));

  RefuseCommits();
  Block();
  auto failed = Begin(Turn("a", {Image('1')}));
  auto kept = Take<absl::Status>([&](auto done) { store_->AddImage("b", Image('2'), done); });
  Release();
  EXPECT_FALSE(failed.get().ok());
  EXPECT_FALSE(kept.get().ok()) << "they share a commit";
  EXPECT_TRUE(std::filesystem::is_empty(images()));
}

TEST_F(SessionStoreBatchTest, APictureThatAnotherRequestKeepsStays) {
  StoredImage unknown;
  unknown.info.set_id("unknown");
  Block();
  auto failed = Begin(Turn("a", {Image('1'), unknown}));
  auto begun = Begin(Turn("b", {Image('1')}));
  Release();
  EXPECT_FALSE(failed.get().ok());
  EXPECT_TRUE(begun.get().ok());
  EXPECT_TRUE(std::filesystem::exists(images() / std::string(64, '1')));
}

// 1,000 pages of one key, and somebody else's question behind them.
TEST_F(SessionStoreBatchTest, AQuestionDoesNotWaitForAllPagesBeforeIt) {
  Block();
  std::atomic<int> pages = 0;
  std::vector<std::future<absl::StatusOr<TurnPage>>> all;
  for (int i = 0; i < 1000; ++i) {
    all.push_back(Take<absl::StatusOr<TurnPage>>([&](auto done) {
      store_->ListTurns("a", 1000, "", [&pages, done](auto page) {
        ++pages;
        done(std::move(page));
      });
    }));
  }
  int before = -1;
  auto begun = Take<absl::StatusOr<uint32_t>>([&](auto done) {
    store_->BeginTurn(Turn("b"), [&, done](const auto&) {
      store_->BeginTurn(Turn("c"), [&, done](auto number) {  // in the next transaction
        before = pages;
        done(std::move(number));
      });
    });
  });
  Release();
  ASSERT_TRUE(begun.get().ok());
  EXPECT_LT(before, 20);
  for (auto& page : all) EXPECT_TRUE(page.get().ok());
}

TEST_F(SessionStoreBatchTest, ThePageAfterThisOneIsAnotherWhateverHappensMeanwhile) {
  const auto list = [this](const std::string& token) {
    return Take<absl::StatusOr<SessionPage>>(
        [&](auto done) { store_->ListSessions(std::nullopt, 2, token, done); });
  };
  ASSERT_EQ(list("").get()->sessions.at(0).id(), "c");
  Block();
  // In one batch: both are used once more after the order is written down.
  auto older = Take<absl::Status>([&](auto done) { store_->AddImage("c", Image('1'), done); });
  auto newer = Take<absl::Status>([&](auto done) { store_->AddImage("b", Image('2'), done); });
  auto page = list("");
  Release();
  ASSERT_TRUE(older.get().ok());
  ASSERT_TRUE(newer.get().ok());
  const SessionPage first = *page.get();
  ASSERT_EQ(first.sessions.size(), 2U);
  ASSERT_EQ(first.sessions[1].id(), "b");
  const SessionPage second = *list(first.next_page_token).get();
  ASSERT_EQ(second.sessions.size(), 1U);
  EXPECT_EQ(second.sessions[0].id(), "a");
}

// Of a picture that is there and cannot be opened now nobody is told that it is lost.
TEST_F(SessionStoreBatchTest, AFileThatCannotBeOpenedIsNotLost) {
  ASSERT_TRUE(
      Take<absl::Status>([&](auto done) { store_->AddImage("a", Image('1'), done); }).get().ok());
  const auto read = [this](char letter) {
    return Take<absl::StatusOr<std::string>>(
               [&](auto done) { store_->ReadImage(std::string(64, letter), done); })
        .get()
        .status();
  };
  EXPECT_TRUE(read('1').ok());
  EXPECT_EQ(read('2').code(), absl::StatusCode::kDataLoss);
  rlimit usual{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &usual), 0);
  rlimit none = usual;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status refused = read('1');
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInternal) << refused;
  EXPECT_TRUE(read('1').ok());
}

}  // namespace
}  // namespace llava
