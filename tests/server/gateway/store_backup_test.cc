#include "server/gateway/store_backup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <future>
#include <iterator>
#include <set>
#include <string>
#include <thread>

#include "model/digest/sha256.h"
#include "server/gateway/session_store.h"
#include "tests/server/gateway/private_files.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class StoreBackupTest : public testing::Test {
 protected:
  std::unique_ptr<SessionStore> Open(const std::string& name) {
    auto store = SessionStore::Open(folder_.At(name), gateway_metrics_, {});
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  fs::path At(const std::string& name) const { return folder_.path() / name; }

  static void AddSession(SessionStore& store, const std::string& id) {
    v1::Session session;
    session.set_id(id);
    std::promise<bool> done;
    store.CreateSession(session, [&](const auto& created) { done.set_value(created.ok()); });
    EXPECT_TRUE(done.get_future().get());
  }
  // A turn that stays running, about a picture of its own.
  static void AddTurn(SessionStore& store, const std::string& session, const std::string& id) {
    NewTurn turn;
    turn.id = id;
    turn.session_id = session;
    turn.user_text = "about " + id;
    turn.request = {"key of " + id, "hash"};
    StoredImage image;
    image.bytes = std::make_shared<const std::string>("picture of " + id);
    image.info.set_id(ToHex(HashBytes(*image.bytes)));
    turn.images.push_back(image);
    std::promise<absl::Status> done;
    store.BeginTurn(turn, [&](const auto& begun) { done.set_value(begun.status()); });
    EXPECT_TRUE(done.get_future().get().ok());
  }
  static void Delete(SessionStore& store, const std::string& session) {
    std::promise<void> done;
    store.DeleteSession(session, [&](const auto&) { done.set_value(); });
    done.get_future().wait();
  }
  static absl::StatusOr<Conversation> Read(SessionStore& store, const std::string& session) {
    std::promise<absl::StatusOr<Conversation>> done;
    store.GetConversation(session, {}, [&](auto found) { done.set_value(std::move(found)); });
    return done.get_future().get();
  }

  TempFolder folder_;
  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
};

TEST_F(StoreBackupTest, ACopyIsWholeWhileTheStoreIsAtWork) {
  auto store = Open("data");
  AddSession(*store, "kept");
  AddTurn(*store, "kept", "t");
  std::atomic<bool> stop = false;
  std::thread work([&] {
    for (int i = 0; !stop; ++i) {
      const std::string id = "s" + std::to_string(i);
      AddSession(*store, id);
      AddTurn(*store, id, "of " + id);
      if (i % 2 == 1) Delete(*store, id);
    }
  });
  for (int i = 0; i < 5; ++i) {
    const std::string copy = "copy" + std::to_string(i), restored = "restored" + std::to_string(i);
    const auto contents = BackUpStore(At("data"), At(copy));
    ASSERT_TRUE(contents.ok()) << contents.status();
    const auto back = RestoreStore(At(copy), At(restored));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->sessions, contents->sessions);
    EXPECT_EQ(back->turns, contents->turns);
    EXPECT_EQ(back->images, contents->turns) << "each turn has its picture";
    auto other = Open(restored);
    EXPECT_TRUE(other->TakeUnfinished().empty());
    const auto conversation = Read(*other, "kept");
    ASSERT_TRUE(conversation.ok()) << conversation.status();
    const v1::Turn& turn = conversation->turns.at(0).turn;
    EXPECT_EQ(turn.user_text(), "about t");
    EXPECT_EQ(turn.finish_reason(), v1::FINISH_REASON_INTERRUPTED);
    EXPECT_EQ(turn.images(0).id(), ToHex(HashBytes("picture of t")));
    std::promise<std::string> repeated;
    other->FindRequest("kept", {"key of t", "hash"},
                       [&](const auto& id) { repeated.set_value(id.value_or("an error")); });
    EXPECT_EQ(repeated.get_future().get(), "") << "who asks again gets an answer";
  }
  stop = true;
  work.join();
  EXPECT_FALSE(fs::exists(At("copy0.partial")));
}

TEST_F(StoreBackupTest, AFolderMayBeNamedWithASlashBehindIt) {
  auto store = Open("data");
  AddSession(*store, "s");
  const auto contents = BackUpStore(At("data/"), At("copy/"));
  ASSERT_TRUE(contents.ok()) << contents.status();
  EXPECT_TRUE(fs::exists(At("copy") / "sessions.db"));
  EXPECT_FALSE(fs::exists(At("copy.partial")));
  EXPECT_TRUE(RestoreStore(At("copy/"), At("new/")).ok());
  EXPECT_TRUE(fs::exists(At("new") / "sessions.db"));
}

TEST_F(StoreBackupTest, WhatCannotBeDone) {
  auto store = Open("data");
  AddSession(*store, "s");
  AddTurn(*store, "s", "t");
  const auto complaint = [](const auto& result, absl::StatusCode code) {
    EXPECT_EQ(result.status().code(), code) << result.status();
    return std::string(result.status().message());
  };
  const auto kPrecondition = absl::StatusCode::kFailedPrecondition;
  EXPECT_THAT(complaint(BackUpStore(At("nothing"), At("copy")), kPrecondition),
              HasSubstr("no sessions in"));
  EXPECT_THAT(complaint(BackUpStore(At("data"), At("data")), kPrecondition), HasSubstr("exists"));
  ASSERT_TRUE(BackUpStore(At("data"), At("copy")).ok());
  EXPECT_THAT(complaint(RestoreStore(At("copy"), At("data")), kPrecondition),
              HasSubstr("has sessions already"));
  EXPECT_THAT(complaint(RestoreStore(At("nothing"), At("new")), kPrecondition),
              HasSubstr("--restore"));

  fs::create_directory(At("left"));
  std::ofstream(At("left") / "sessions.db-wal") << "frames of another database";
  EXPECT_THAT(complaint(RestoreStore(At("copy"), At("left")), kPrecondition),
              HasSubstr("sessions.db-wal"));

  const fs::path picture = At("copy") / "images" / ToHex(HashBytes("picture of t"));
  std::ofstream(picture) << "other";
  EXPECT_THAT(complaint(RestoreStore(At("copy"), At("new")), absl::StatusCode::kDataLoss),
              HasSubstr("is damaged"));
  fs::remove(picture);
  EXPECT_THAT(complaint(RestoreStore(At("copy"), At("new")), absl::StatusCode::kDataLoss),
              HasSubstr("is missing"));
  fs::create_directory(picture);
  EXPECT_THAT(complaint(RestoreStore(At("copy"), At("new")), absl::StatusCode::kInternal),
              HasSubstr("cannot read " + picture.string()));
  EXPECT_FALSE(fs::exists(At("new") / "sessions.db")) << "half a store is none";
}

TEST_F(StoreBackupTest, ABackupIsReadOnlyAndWhatIsThereIsChecked) {
  auto store = Open("data");
  AddSession(*store, "s");
  AddTurn(*store, "s", "t");
  ASSERT_TRUE(BackUpStore(At("data"), At("copy")).ok());
  const auto bytes = [](const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string before = bytes(At("copy") / "sessions.db");
  const std::string picture = ToHex(HashBytes("picture of t"));
  fs::create_directories(At("new") / "images");
  std::ofstream(At("new") / "images" / picture) << "half of a pict";
  const auto restored = RestoreStore(At("copy"), At("new"));
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(bytes(At("new") / "images" / picture), "picture of t");
  EXPECT_EQ(bytes(At("copy") / "sessions.db"), before);
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(At("copy"))) {
    names.insert(entry.path().filename().string());
  }
  EXPECT_THAT(names, testing::ElementsAre("images", "sessions.db"));
}

TEST_F(StoreBackupTest, CopiesAreTheirOwnersAlone) {
  const OpenUmask umask;
  auto store = Open("store");
  AddSession(*store, "s");
  AddTurn(*store, "s", "t");
  ASSERT_TRUE(BackUpStore(At("store"), At("copy")).ok());
  ASSERT_TRUE(RestoreStore(At("copy"), At("again")).ok());
  for (const char* folder : {"copy", "again"}) {
    EXPECT_TRUE(fs::exists(At(folder) / "sessions.db"));
    EXPECT_THAT(OpenToOthers(At(folder)), testing::IsEmpty());
  }
}

}  // namespace
}  // namespace llava
