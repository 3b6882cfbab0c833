#include "server/gateway/session_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/gateway/store_schema.h"
#include "server/runtime/logging.h"
#include "tests/server/gateway/private_files.h"
#include "tests/server/gateway/session_store_harness.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(SessionStoreTest, ARequestIsForgottenAfterADay) {
  Open();
  Create("s");
  const RequestKey key{"key", "hash"};
  ASSERT_TRUE(Begin("s", "t", key).ok());
  store_.reset();
  auto database = SqlDatabase::Open(folder_.At("sessions.db"));
  ASSERT_TRUE((*database)->Script("UPDATE turns SET created_us = created_us - 86400000000").ok());
  database->reset();
  Open();
  EXPECT_EQ(Read("s", key)->repeated_turn_id, "");
  EXPECT_TRUE(Read("s", {"key", "changed"}).ok()) << "the key is free";
}

TEST_F(SessionStoreTest, AFileOfVersion3IsBroughtUpToDate) {
  auto database = SqlDatabase::Open(folder_.At("sessions.db"));
  ASSERT_TRUE(MigrateStore(**database, 3).ok());
  const auto written = (*database)->Script(R"sql(
INSERT INTO sessions (id, model, title, context_overflow, created_us, used_us, owner)
  VALUES ('s', '', '', 0, 1, 1, 'ann');
INSERT INTO turns (id, session_id, number, state, user_text, model_name, model_version,
                   model_digest, seed, sampling, created_us)
  VALUES ('t', 's', 1, 2, 'x', 'emoji', 1, 'd', 5, '', 1), ('u', 's', 2, 1, 'y', 'emoji', 1, 'd', 6, '', 2);
INSERT INTO images VALUES ('p', 'bmp', 1, 1, 1), ('q', 'bmp', 1, 1, 1);
INSERT INTO session_images VALUES ('s', 'p'), ('s', 'q');
INSERT INTO turn_images VALUES ('t', 0, 'q'), ('t', 1, 'p');
UPDATE turns SET dropped = 1 WHERE id = 't';
INSERT INTO idempotency_keys VALUES ('s', 'key', 'hash', 'u', strftime('%s', 'now') * 1000000);
UPDATE turns SET created_us = strftime('%s', 'now') * 1000000;
)sql");
  ASSERT_TRUE(written.ok()) << written;
  database->reset();
  Open();
  const auto unfinished = store_->TakeUnfinished();
  ASSERT_EQ(unfinished.size(), 1U);
  EXPECT_EQ(unfinished[0].turn_id, "u");
  EXPECT_EQ(unfinished[0].terms.key_name, "ann");
  EXPECT_GT(unfinished[0].terms.asked, std::chrono::system_clock::now() - std::chrono::minutes(5));
  EXPECT_EQ(unfinished[0].request.key, "key");
  EXPECT_EQ(Read("s", {"key", "hash"})->repeated_turn_id, "u");
  ASSERT_EQ(Read("s")->turns.size(), 1U);
  EXPECT_EQ(Read("s")->turns[0].turn.id(), "u");
  EXPECT_EQ(Read("s")->kept_image, "p");
  EXPECT_EQ(*Begin("s", "v"), 3U);
}

TEST_F(SessionStoreTest, TheLogStaysBoundedUnderCommitsWithoutAGap) {
  Open();
  for (int i = 0; i < 8; ++i) Create(std::to_string(i));
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 200; ++i) {
        const std::string turn = std::to_string(t) + "." + std::to_string(i);
        ASSERT_TRUE(Begin(std::to_string(t), turn).ok());
        TurnResult result;
        result.session_id = std::to_string(t);
        result.turn_id = turn;
        result.answer_text = std::string(40'000, 'a');
        ASSERT_TRUE(Await<absl::Status>([&](auto done) { store_->FinishTurn(result, done); }).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LT(std::filesystem::file_size(folder_.At("sessions.db-wal")), 80U << 20)
      << "of more than 100 MB that went through it";
  EXPECT_GT(std::filesystem::file_size(folder_.At("sessions.db")), 32U << 20);
}

TEST_F(SessionStoreTest, WhatIsDeletedIsOverwritten) {
  const std::string question = "a question that nobody shall find", answer = "nor the answer to it";
  const auto found = [&](const std::string& text) {
    store_.reset();  // its log goes into the tables
    EXPECT_FALSE(std::filesystem::exists(folder_.At("sessions.db-wal")));
    std::ifstream file(folder_.At("sessions.db"), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    Open();
    return bytes.find(text) != std::string::npos;
  };
  Open();
  Create("secret");
  Create("kept");
  for (const std::string session : {"secret", "kept"}) {
    NewTurn record;
    record.id = session + ".1";
    record.session_id = session;
    record.user_text = session == "secret" ? question : "hello";
    ASSERT_TRUE(
        Await<absl::StatusOr<uint32_t>>([&](auto done) { store_->BeginTurn(record, done); }).ok());
    TurnResult result;
    result.session_id = session;
    result.turn_id = record.id;
    // Longer than a page.
    result.answer_text = std::string(10'000, 'a') + (session == "secret" ? answer : "Hello.");
    ASSERT_TRUE(Await<absl::Status>([&](auto done) { store_->FinishTurn(result, done); }).ok());
  }
  EXPECT_TRUE(found(question));
  EXPECT_TRUE(found(answer));
  ASSERT_TRUE(Await<absl::StatusOr<Removed>>([&](auto done) {
                store_->DeleteSession("secret", done);
              }).ok());
  EXPECT_FALSE(found(question));
  EXPECT_FALSE(found(answer));
  EXPECT_TRUE(found("Hello."));
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
  auto database = SqlDatabase::Open(folder_.At("sessions.db"));
  ASSERT_TRUE((*database)->Script("UPDATE schema_version SET version = 1000").ok());
  EXPECT_EQ(MigrateStore(**database).code(), absl::StatusCode::kFailedPrecondition);
  database->reset();
  const auto store = SessionStore::Open(folder_.path(), gateway_metrics_, {});
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("schema version 1000"));
}

TEST_F(SessionStoreTest, RefusesAFileThatIsNoDatabase) {
  std::ofstream(folder_.At("sessions.db")) << std::string(4096, 'x');
  const auto store = SessionStore::Open(folder_.path(), gateway_metrics_, {});
  EXPECT_FALSE(store.ok());
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("sessions.db"));
}

TEST_F(SessionStoreTest, SweepsFilesThatACrashLeft) {
  Open();
  store_.reset();
  const std::string stray = folder_.At("images/") + std::string(64, 'a');
  std::ofstream(stray) << "x";
  std::ofstream(stray + ".tmp") << "x";
  Open();
  EXPECT_TRUE(std::filesystem::is_empty(folder_.At("images")));
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
  // In one batch with the next, if they are quick.
  store_->DeleteSession("a", [done = keep()](const auto& removed) { done(removed.status()); });
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
  EXPECT_EQ(gateway_metrics_.store_queue.Value(), 3) << "with the one under way";
  store_->GetSession("x", note(2));
  store_->FinishTurn({}, note(3));
  release.set_value();
  all.get_future().wait();
  EXPECT_EQ(codes[0], absl::StatusCode::kNotFound);
  EXPECT_EQ(codes[1], absl::StatusCode::kNotFound);
  EXPECT_EQ(codes[2], absl::StatusCode::kUnavailable);
  EXPECT_EQ(codes[3], absl::StatusCode::kOk);
}

TEST_F(SessionStoreTest, OneThatFailsAfterItHasWrittenTakesBackOnlyItsOwn) {
  Open();
  for (const char* id : {"a", "b", "c"}) Create(id);
  std::promise<void> release;
  store_->GetSession("x", [&](auto) { release.get_future().wait(); });
  std::vector<std::future<absl::StatusOr<uint32_t>>> begun;
  for (const char* id : {"a", "b", "c"}) {
    NewTurn turn;
    turn.id = absl::StrCat("turn-of-", id);
    turn.session_id = id;
    if (turn.session_id == "b") turn.images.emplace_back().info.set_id("unknown");
    auto promise = std::make_shared<std::promise<absl::StatusOr<uint32_t>>>();
    begun.push_back(promise->get_future());
    store_->BeginTurn(turn, [promise](absl::StatusOr<uint32_t> number) {
      promise->set_value(std::move(number));
    });
  }
  release.set_value();
  EXPECT_EQ(*begun[0].get(), 1U);
  EXPECT_EQ(begun[1].get().status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*begun[2].get(), 1U);
  store_.reset();
  Open();
  EXPECT_EQ(store_->TakeUnfinished().size(), 2U);
  EXPECT_EQ(Read("a")->turns.size(), 1U);
  EXPECT_TRUE(Read("b")->turns.empty());
  EXPECT_EQ(Read("c")->turns.size(), 1U);
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

// Sizes of the pages that `list` gives, in which a page is (size, next token).
template <typename List>
std::vector<size_t> PageSizes(const List& list) {
  std::vector<size_t> sizes;
  std::string token;
  do {
    const auto [size, next] = list(token);
    sizes.push_back(size);
    token = next;
  } while (!token.empty());
  return sizes;
}

TEST_F(SessionStoreTest, APageOfLargeItemsIsShort) {
  Open();
  Create("s");
  NewTurn turn;
  turn.session_id = "s";
  for (const size_t size : {1'000'000, 1'000'000, 10, 1'000'000, 5'000'000, 1'000'000}) {
    turn.id += "t";
    turn.user_text.assign(size, 'x');
    ASSERT_TRUE(
        Await<absl::StatusOr<uint32_t>>([&](auto done) { store_->BeginTurn(turn, done); }).ok());
  }
  EXPECT_THAT(PageSizes([&](const std::string& token) {
                auto page = Await<absl::StatusOr<TurnPage>>(
                    [&](auto done) { store_->ListTurns("s", 1000, token, done); });
                return std::pair(page->turns.size(), page->next_page_token);
              }),
              ElementsAre(3, 1, 1, 1))
      << "about two megabytes, but one turn at least";
  v1::Session session;
  session.set_system_prompt(std::string(600'000, 'x'));
  for (const char* id : {"a", "b", "c", "d", "e"}) {
    session.set_id(id);
    ASSERT_TRUE(Await<absl::StatusOr<v1::Session>>([&](auto done) {
                  store_->CreateSession(session, done);
                }).ok());
  }
  EXPECT_THAT(PageSizes([&](const std::string& token) {
                auto page = Await<absl::StatusOr<SessionPage>>(
                    [&](auto done) { store_->ListSessions(std::nullopt, 1000, token, done); });
                return std::pair(page->sessions.size(), page->next_page_token);
              }),
              ElementsAre(3, 3))
      << "the small one is the oldest";
}

TEST_F(SessionStoreTest, ItsFilesAreItsOwnersAlone) {
  const OpenUmask umask;
  const std::filesystem::path folder = folder_.At("new");
  auto store = SessionStore::Open(folder, gateway_metrics_, options_);
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  Create("s");
  EXPECT_TRUE(std::filesystem::exists(folder / "sessions.db-wal"));
  EXPECT_TRUE(std::filesystem::exists(folder / "sessions.db-shm"));
  EXPECT_THAT(OpenToOthers(folder), testing::IsEmpty());
  store_.reset();
}

TEST_F(SessionStoreTest, SaysThatOthersMayReadAnOlderStore) {
  const auto folder = folder_.path() / "old";
  const auto log_of_start = [&] {
    InitLogging({"test", "info", "text"});
    testing::internal::CaptureStderr();
    EXPECT_TRUE(SessionStore::Open(folder, gateway_metrics_, options_).ok());
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(log_of_start(), testing::Not(HasSubstr("may read the sessions")));
  namespace fs = std::filesystem;
  fs::permissions(folder / "sessions.db", fs::perms::others_read, fs::perm_options::add);
  EXPECT_THAT(log_of_start(), testing::Not(HasSubstr("may read the sessions")))
      << "the folder is closed";
  fs::permissions(folder, fs::perms::others_read | fs::perms::others_exec, fs::perm_options::add);
  EXPECT_THAT(log_of_start(), HasSubstr("may read the sessions: chmod"));
}

}  // namespace
}  // namespace llava
