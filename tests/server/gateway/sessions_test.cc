// Sessions through the wire: made, changed, listed in pages, deleted.

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "model/digest/sha256.h"
#include "server/gateway/session_store.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

class SessionsTest : public GatewayTest {};

TEST_F(SessionsTest, KeepsWhatItWasGiven) {
  StartGateway();
  v1::CreateSessionRequest request;
  request.set_model("emoji");
  request.set_system_prompt("");
  request.mutable_sampling()->set_top_k(7);
  request.mutable_sampling()->add_stop("END");
  request.set_title("cats");
  (*request.mutable_metadata())["colour"] = "r\xc3\xb6t";
  request.set_context_overflow(v1::CONTEXT_OVERFLOW_ERROR);
  v1::GetSessionRequest get;
  get.set_session_id(NewSession(request));
  StopGateway();
  StartGateway();
  v1::GetSessionResponse response;
  ASSERT_TRUE(stub_->GetSession(Context().get(), get, &response).ok());
  const v1::Session& session = response.session();
  EXPECT_EQ(session.model(), "emoji");
  EXPECT_TRUE(session.has_system_prompt());
  EXPECT_EQ(session.sampling().top_k(), 7U);
  EXPECT_EQ(session.sampling().stop(0), "END");
  EXPECT_EQ(session.title(), "cats");
  EXPECT_EQ(session.metadata().at("colour"), "r\xc3\xb6t");
  EXPECT_EQ(session.context_overflow(), v1::CONTEXT_OVERFLOW_ERROR);
  EXPECT_GT(session.create_time().seconds(), 1'600'000'000);
  EXPECT_EQ(session.turn_count(), 0U);
}

TEST_F(SessionsTest, TheDefaultModelIsAChoice) {
  llm_.models().Set({FakeLanguageModel("one", 1), FakeLanguageModel("two", 1)});
  options_.default_model = "two";
  StartGateway();
  const std::string session = NewSession();
  EXPECT_EQ(Ask(Question(session, "x")).started.model().name(), "two");
  v1::GetSessionRequest get;
  get.set_session_id(session);
  v1::GetSessionResponse response;
  ASSERT_TRUE(stub_->GetSession(Context().get(), get, &response).ok());
  EXPECT_EQ(response.session().model(), "two");
  EXPECT_EQ(response.session().turn_count(), 1U);
}

TEST_F(SessionsTest, TheSystemTextStaysWhileAnAnswerIsMadeOfIt) {
  llm_.Set({.pause_after = 1});
  StartGateway();
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_id(NewSession());
  update.mutable_session()->set_title("cats");
  update.mutable_session()->set_system_prompt("be brief");
  update.mutable_update_mask()->add_paths("title");
  v1::UpdateSessionResponse response;
  const Answer answer = Ask(
      Question(update.session().id(), "a b c"), [&](grpc::ClientContext&, const Answer& so_far) {
        EXPECT_TRUE(stub_->UpdateSession(Context().get(), update, &response).ok());
        update.mutable_update_mask()->add_paths("system_prompt");
        const auto status = stub_->UpdateSession(Context().get(), update, &response);
        EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
        EXPECT_THAT(status.error_message(), HasSubstr(so_far.started.turn_id()));
        llm_.Set({});
        llm_.Release();
      });
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(response.session().title(), "cats");
  EXPECT_FALSE(response.session().has_system_prompt());
  const auto status = stub_->UpdateSession(Context().get(), update, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.session().system_prompt(), "be brief");
  EXPECT_TRUE(Ask(Question(update.session().id(), "d")).status.ok());
  EXPECT_EQ(llm_.last_request().messages(0).text(), "be brief");
}

TEST_F(SessionsTest, WhatADeletedSessionSaidLeavesTheJournal) {
  StartGateway();
  v1::DeleteSessionRequest request;
  request.set_session_id(NewSession());
  const std::string word = "a-word-of-its-own";
  const auto journal_has_it = [&] {
    for (const auto& entry : std::filesystem::directory_iterator(options_.data_dir + "/journal")) {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(file), {}};
      if (bytes.find(word) != std::string::npos) return true;
    }
    return false;
  };
  ASSERT_TRUE(Ask(Question(request.session_id(), word)).status.ok());
  EXPECT_TRUE(journal_has_it());
  v1::DeleteSessionResponse response;
  ASSERT_TRUE(stub_->DeleteSession(Context().get(), request, &response).ok());
  EXPECT_TRUE(Eventually([&] { return !journal_has_it(); }));
}

TEST_F(SessionsTest, AnUnknownDefaultModelIsNotReady) {
  options_.default_model = "two";
  StartGateway(/*wait=*/false);
  ASSERT_TRUE(Eventually([&] { return reason().find("no model \"two\"") != std::string::npos; }));
}

TEST_F(SessionsTest, ChangesWhatTheMaskNames) {
  StartGateway();
  v1::CreateSessionRequest create;
  create.set_title("before");
  create.set_system_prompt("old");
  (*create.mutable_metadata())["a"] = "1";
  const std::string id = NewSession(create);
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_id(id);
  update.mutable_session()->set_title("after");
  update.mutable_session()->mutable_sampling()->set_max_new_tokens(3);
  (*update.mutable_session()->mutable_metadata())["b"] = "2";
  v1::UpdateSessionResponse response;
  EXPECT_EQ(stub_->UpdateSession(Context().get(), update, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT)
      << "no mask";
  for (const char* path : {"title", "sampling", "system_prompt"}) {
    update.mutable_update_mask()->add_paths(path);
  }
  ASSERT_TRUE(stub_->UpdateSession(Context().get(), update, &response).ok());
  EXPECT_EQ(response.session().title(), "after");
  EXPECT_EQ(response.session().sampling().max_new_tokens(), 3U);
  EXPECT_FALSE(response.session().has_system_prompt());
  EXPECT_EQ(response.session().metadata().at("a"), "1");
  Ask(Question(id, "x"));
  EXPECT_EQ(llm_.last_request().sampling().max_new_tokens(), 3U);
  EXPECT_EQ(llm_.last_request().messages(0).role(), v1::ROLE_USER);

  update.mutable_update_mask()->clear_paths();
  update.mutable_update_mask()->add_paths("idle_expiry");
  update.mutable_session()->mutable_idle_expiry()->set_seconds(90);
  ASSERT_TRUE(stub_->UpdateSession(Context().get(), update, &response).ok());
  EXPECT_EQ(response.session().idle_expiry().seconds(), 90);
  update.mutable_session()->clear_idle_expiry();
  ASSERT_TRUE(stub_->UpdateSession(Context().get(), update, &response).ok());
  EXPECT_FALSE(response.session().has_idle_expiry());
  update.mutable_update_mask()->add_paths("model");
  EXPECT_EQ(stub_->UpdateSession(Context().get(), update, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SessionsTest, UnusedOnesAreDeleted) {
  options_.session_ttl = std::chrono::milliseconds(200);
  options_.resume_grace = std::chrono::milliseconds(200);
  StartGateway();
  v1::CreateSessionRequest create;
  create.mutable_idle_expiry()->set_seconds(3600);
  const std::string kept = NewSession(create);
  const std::string gone = NewSession();
  Ask(Question(gone, "x", {FakePicture(1)}));
  v1::GetSessionRequest request;
  v1::GetSessionResponse response;
  request.set_session_id(gone);
  EXPECT_TRUE(Eventually([&] {
    return stub_->GetSession(Context().get(), request, &response).error_code() ==
           grpc::StatusCode::NOT_FOUND;
  }));
  EXPECT_TRUE(Eventually([&] { return std::filesystem::is_empty(options_.data_dir + "/images"); }));
  request.set_session_id(kept);
  EXPECT_TRUE(stub_->GetSession(Context().get(), request, &response).ok());
  EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_sessions") == 1; }));
}

TEST_F(SessionsTest, ManyThatExpireTogetherGoSoon) {
  options_.session_ttl = std::chrono::seconds(8);  // looked for every two seconds
  options_.resume_grace = std::chrono::milliseconds(80);
  {
    Metrics metrics("gateway");
    GatewayMetrics gateway_metrics(metrics);
    SessionStore::Options options;
    options.max_waiting = 10'000;
    const auto store = SessionStore::Open(options_.data_dir, gateway_metrics, options);
    ASSERT_TRUE(store.ok()) << store.status();
    for (int i = 0; i < 4000; ++i) {
      v1::Session session;
      session.set_id(std::to_string(i));
      session.mutable_idle_expiry()->set_nanos(1000);
      (*store)->CreateSession(session, [](const auto& made) { ASSERT_TRUE(made.ok()); });
    }
  }
  StartGateway();
  EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_sessions") == 0; }));
}

TEST_F(SessionsTest, ListsInPagesLastUsedFirst) {
  StartGateway();
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) {
    ids.push_back(NewSession());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  Ask(Question(ids[1], "use"));
  std::vector<std::string> listed;
  v1::ListSessionsRequest request;
  request.set_page_size(2);
  std::vector<int> sizes;
  do {
    v1::ListSessionsResponse response;
    ASSERT_TRUE(stub_->ListSessions(Context().get(), request, &response).ok());
    sizes.push_back(response.sessions_size());
    for (const auto& session : response.sessions()) listed.push_back(session.id());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_THAT(sizes, ElementsAre(2, 2, 1));
  EXPECT_THAT(listed, ElementsAre(ids[1], ids[4], ids[3], ids[2], ids[0]));
}

TEST_F(SessionsTest, ListsTurnsInPagesOldestFirst) {
  StartGateway();
  const std::string session = NewSession();
  for (const char* text : {"a", "b", "c"}) ASSERT_TRUE(Ask(Question(session, text)).status.ok());
  v1::ListTurnsRequest request;
  request.set_session_id(session);
  request.set_page_size(2);
  v1::ListTurnsResponse response;
  ASSERT_TRUE(stub_->ListTurns(Context().get(), request, &response).ok());
  ASSERT_EQ(response.turns_size(), 2);
  EXPECT_EQ(response.turns(0).user_text(), "a");
  EXPECT_EQ(response.turns(1).number(), 2U);
  request.set_page_token(response.next_page_token());
  v1::ListTurnsResponse rest;
  ASSERT_TRUE(stub_->ListTurns(Context().get(), request, &rest).ok());
  ASSERT_EQ(rest.turns_size(), 1);
  EXPECT_EQ(rest.turns(0).user_text(), "c");
  EXPECT_EQ(rest.next_page_token(), "");
}

TEST_F(SessionsTest, DeletionTakesPicturesThatNobodyElseHas) {
  StartGateway();
  const std::string first = NewSession();
  const std::string second = NewSession();
  Ask(Question(first, "x", {FakePicture(1), FakePicture(2)}));
  Ask(Question(second, "x", {FakePicture(2)}));
  const auto pictures = [&] {
    const auto files = std::filesystem::directory_iterator(options_.data_dir + "/images");
    return std::distance(begin(files), end(files));
  };
  EXPECT_EQ(pictures(), 2);
  v1::DeleteSessionRequest request;
  v1::DeleteSessionResponse response;
  request.set_session_id(first);
  ASSERT_TRUE(stub_->DeleteSession(Context().get(), request, &response).ok());
  EXPECT_EQ(pictures(), 1);
  const std::string id = ToHex(HashBytes(FakePicture(1)));
  EXPECT_TRUE(Eventually([&] { return vision_.dropped().contains(id); }));
  EXPECT_TRUE(Eventually([&] { return llm_.dropped().contains(id); }));
  EXPECT_TRUE(Eventually([&] { return llm_.dropped_sessions().contains(first); }));
  EXPECT_EQ(stub_->DeleteSession(Context().get(), request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(vision_.dropped(), SizeIs(1)) << "the other picture is in a session";
  llm_.ForgetFeatures();
  EXPECT_TRUE(Ask(Question(second, "still")).status.ok());
  request.set_session_id(second);
  ASSERT_TRUE(stub_->DeleteSession(Context().get(), request, &response).ok());
  EXPECT_EQ(pictures(), 0);
  EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_sessions") == 0; }));
  EXPECT_TRUE(Eventually([&] { return vision_.dropped().size() == 2; }));
}

TEST_F(SessionsTest, AnExpiredSessionsPicturesAreForgotten) {
  options_.session_ttl = std::chrono::milliseconds(200);
  StartGateway();
  std::string session = NewSession();
  // It may expire between the two calls.
  while (!Ask(Question(session, "x", {FakePicture(1)})).status.ok()) session = NewSession();
  EXPECT_TRUE(Eventually([&] { return !vision_.dropped().empty(); }));
  EXPECT_TRUE(Eventually([&] { return !llm_.dropped().empty(); }));
  EXPECT_TRUE(Eventually([&] { return llm_.dropped_sessions().contains(session); }));
}

TEST_F(SessionsTest, APictureThatIsEncodedAfterItsDeletionIsForgottenToo) {
  vision_.Set({.pause = true});
  StartGateway();
  v1::DeleteSessionRequest request;
  v1::DeleteSessionResponse response;
  request.set_session_id(NewSession());
  const Upload upload = Send(request.session_id(), FakePicture(1));
  ASSERT_TRUE(upload.status.ok()) << upload.status.error_message();
  ASSERT_TRUE(Eventually([&] { return vision_.encodes() == 1; }));
  ASSERT_TRUE(stub_->DeleteSession(Context().get(), request, &response).ok());
  ASSERT_TRUE(Eventually([&] { return llm_.dropped().size() == 1; }));
  vision_.Set({});
  vision_.Release();
  EXPECT_TRUE(Eventually([&] { return vision_.dropped().count(upload.image.id()) == 2; }));
  EXPECT_TRUE(Eventually([&] { return llm_.dropped().count(upload.image.id()) == 2; }));
  EXPECT_EQ(llm_.puts(), 1) << "between the two";
}

}  // namespace
}  // namespace llava
