#pragma once

// A session store in a folder of its own, for tests.

#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "server/gateway/session_store.h"
#include "tests/support/temp_folder.h"

namespace llava {

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

  absl::StatusOr<uint32_t> Begin(const std::string& session, const std::string& turn,
                                 const RequestKey& request = {}) {
    NewTurn record;
    record.request = request;
    record.sampling.set_max_new_tokens(77);
    record.id = turn;
    record.session_id = session;
    record.user_text = "hello";
    record.seed = 0xffff'ffff'ffff'fff0;
    return Await<absl::StatusOr<uint32_t>>([&](auto done) { store_->BeginTurn(record, done); });
  }

  absl::StatusOr<Conversation> Read(const std::string& session, const RequestKey& request = {}) {
    return Await<absl::StatusOr<Conversation>>(
        [&](auto done) { store_->GetConversation(session, request, done); });
  }

  TempFolder folder_;
  SessionStore::Options options_;
  Metrics metrics_{"gateway"};
  GatewayMetrics gateway_metrics_{metrics_};
  std::unique_ptr<SessionStore> store_;
};

}  // namespace llava
