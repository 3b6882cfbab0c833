// A gateway with keys: who comes in, and what each one sees.

#include <gmock/gmock.h>

#include <fstream>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "llava/v1/rollout.pb.h"
#include "tests/server/gateway/gateway_harness.h"
#include "tests/support/generic_call.h"

namespace llava {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

class AccessTest : public GatewayTest {
 protected:
  AccessTest() {
    options_.keys_file = folder_.At("keys.yaml");
    std::ofstream file(options_.keys_file);
    for (const char* role : {"user", "admin", "monitor"}) {
      for (const char* name : {"ann", "bob"}) {
        file << "- {name: " << name << "-" << role << ", role: " << role
             << ", sha256: " << ToHex(HashBytes(absl::StrCat(name, " ", role))) << "}\n";
      }
    }
  }

  // Sends an empty message to a method of any kind and returns how the call ends.
  grpc::Status CallWith(const std::string& key, const google::protobuf::MethodDescriptor& method) {
    key_ = key;
    return CallByDescriptor(channel_, *Context(), method, {""});
  }

  std::vector<std::string> Sessions(const std::string& key) {
    key_ = key;
    v1::ListSessionsRequest request;
    request.set_page_size(1);
    std::vector<std::string> ids;
    do {
      v1::ListSessionsResponse page;
      EXPECT_TRUE(stub_->ListSessions(Context().get(), request, &page).ok());
      for (const auto& session : page.sessions()) ids.push_back(session.id());
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    return ids;
  }
};

std::vector<const google::protobuf::MethodDescriptor*> AllMethods() {
  std::vector<const google::protobuf::MethodDescriptor*> methods;
  for (const auto* service : {v1::ChatRequest::descriptor()->file()->service(0),
                              v1::ListModelsRequest::descriptor()->file()->service(0),
                              v1::GetRolloutRequest::descriptor()->file()->service(0)}) {
    for (int i = 0; i < service->method_count(); ++i) methods.push_back(service->method(i));
  }
  return methods;
}

TEST_F(AccessTest, NoMethodIsOpenToStrangers) {
  StartGateway();
  ASSERT_GE(AllMethods().size(), 20u);
  for (const auto* method : AllMethods()) {
    for (const char* key : {"", "ann", "ann user ", "ANN USER"}) {
      const auto status = CallWith(key, *method);
      EXPECT_EQ(status.error_code(), StatusCode::UNAUTHENTICATED) << method->name() << " " << key;
      EXPECT_THAT(status.error_message(), HasSubstr("API key"));
    }
    const auto monitor = CallWith("ann monitor", *method);
    EXPECT_EQ(monitor.error_code(), StatusCode::PERMISSION_DENIED) << method->name();
    EXPECT_THAT(monitor.error_message(), HasSubstr("monitor"));
    const auto user = CallWith("ann user", *method);
    EXPECT_NE(user.error_code(), StatusCode::UNAUTHENTICATED) << method->name();
  }
}

TEST_F(AccessTest, ModelsAreChangedByAdminsOnly) {
  StartGateway();
  for (const auto* method : AllMethods()) {
    const std::string name = method->name();
    if (name != "LoadModel" && name != "UnloadModel" && name != "SetLabel" && name != "Rollback") {
      continue;
    }
    EXPECT_EQ(CallWith("ann user", *method).error_code(), StatusCode::PERMISSION_DENIED) << name;
    EXPECT_EQ(CallWith("ann admin", *method).error_code(), StatusCode::INVALID_ARGUMENT) << name;
  }
}

TEST_F(AccessTest, EachKeySeesItsOwnSessions) {
  StartGateway();
  key_ = "ann user";
  const std::string anns = NewSession();
  key_ = "bob user";
  const std::string bobs = NewSession();
  EXPECT_THAT(Sessions("ann user"), ElementsAre(anns));
  EXPECT_THAT(Sessions("bob user"), ElementsAre(bobs));
  EXPECT_THAT(Sessions("ann admin"), UnorderedElementsAre(anns, bobs));
  v1::GetSessionRequest get;
  get.set_session_id(anns);
  v1::GetSessionResponse response;
  ASSERT_TRUE(stub_->GetSession(Context().get(), get, &response).ok());
  EXPECT_EQ(response.session().owner(), "ann-user");
}

// Every call about a session of Ann's by Bob ends as that about a session that never was.
TEST_F(AccessTest, ForeignSessionsAreAsUnknownAsThoseThatNeverWere) {
  StartGateway();
  key_ = "ann user";
  const std::string anns = NewSession();
  const Answer before = Ask(Question(anns, "one", {FakePicture(1)}));
  ASSERT_TRUE(before.status.ok()) << before.status.error_message();
  const std::string turn = before.started.turn_id();

  key_ = "bob user";
  const auto calls = [&](const std::string& session) {
    std::vector<grpc::Status> ends;
    v1::GetSessionRequest get;
    get.set_session_id(session);
    v1::GetSessionResponse got;
    ends.push_back(stub_->GetSession(Context().get(), get, &got));
    v1::UpdateSessionRequest update;
    update.mutable_session()->set_id(session);
    update.mutable_update_mask()->add_paths("title");
    v1::UpdateSessionResponse updated;
    ends.push_back(stub_->UpdateSession(Context().get(), update, &updated));
    v1::DeleteSessionRequest remove;
    remove.set_session_id(session);
    v1::DeleteSessionResponse removed;
    ends.push_back(stub_->DeleteSession(Context().get(), remove, &removed));
    v1::ListTurnsRequest list;
    list.set_session_id(session);
    v1::ListTurnsResponse turns;
    ends.push_back(stub_->ListTurns(Context().get(), list, &turns));
    for (const std::string& id : {std::string(), turn}) {
      v1::CancelTurnRequest cancel;
      cancel.set_session_id(session);
      cancel.set_turn_id(id);
      v1::CancelTurnResponse cancelled;
      ends.push_back(stub_->CancelTurn(Context().get(), cancel, &cancelled));
    }
    v1::ChatServiceCountTokensRequest count;
    count.set_session_id(session);
    count.set_text("two");
    v1::ChatServiceCountTokensResponse counts;
    ends.push_back(stub_->CountTokens(Context().get(), count, &counts));
    ends.push_back(Ask(Question(session, "two")).status);
    const auto context = Context();
    v1::RegenerateTurnRequest again;
    again.set_session_id(session);
    again.set_turn_id(turn);
    const auto reader = stub_->RegenerateTurn(context.get(), again);
    v1::RegenerateTurnResponse event;
    EXPECT_FALSE(reader->Read(&event));
    ends.push_back(reader->Finish());
    const auto upload_context = Context();
    v1::UploadImageResponse uploaded;
    const auto writer = stub_->UploadImage(upload_context.get(), &uploaded);
    v1::UploadImageRequest header;
    header.mutable_header()->set_session_id(session);
    writer->Write(header);
    ends.push_back(writer->Finish());
    return ends;
  };
  const std::string never(anns.size(), '0');
  for (int round = 0; round < 2; ++round) {  // the second one with owners remembered
    const auto foreign = calls(anns), unknown = calls(never);
    ASSERT_EQ(foreign.size(), unknown.size());
    for (size_t i = 0; i < foreign.size(); ++i) {
      EXPECT_EQ(foreign[i].error_code(), StatusCode::NOT_FOUND) << i;
      EXPECT_EQ(absl::StrReplaceAll(foreign[i].error_message(), {{anns, never}}),
                unknown[i].error_message())
          << i;
      EXPECT_EQ(unknown[i].error_code(), StatusCode::NOT_FOUND) << i;
    }
  }
  // A picture of Ann's is no picture of Bob's.
  const std::string bobs = NewSession();
  auto question = Question(bobs, "what?");
  question.add_images()->set_id(ToHex(HashBytes(FakePicture(1))));
  EXPECT_EQ(Ask(question).status.error_code(), StatusCode::NOT_FOUND);

  key_ = "ann user";
  EXPECT_EQ(Turns(anns).size(), 1u);
  EXPECT_TRUE(Ask(Question(anns, "two")).status.ok());
  key_ = "bob admin";
  EXPECT_TRUE(Ask(Question(anns, "three")).status.ok());
  EXPECT_EQ(Turns(anns).size(), 3u);
}

// A foreign question or deletion does not touch the turn that is running.
TEST_F(AccessTest, AForeignerCannotStopARunningTurn) {
  StartGateway();
  llm_.Set({.pause_after = 1});
  key_ = "ann user";
  const std::string anns = NewSession();
  const Answer answer = Ask(Question(anns, "a b c d e f g h"), [&](auto&, const Answer&) {
    key_ = "bob user";
    v1::CancelTurnRequest cancel;
    cancel.set_session_id(anns);
    v1::CancelTurnResponse cancelled;
    EXPECT_EQ(stub_->CancelTurn(Context().get(), cancel, &cancelled).error_code(),
              StatusCode::NOT_FOUND);
    v1::DeleteSessionRequest remove;
    remove.set_session_id(anns);
    v1::DeleteSessionResponse removed;
    EXPECT_EQ(stub_->DeleteSession(Context().get(), remove, &removed).error_code(),
              StatusCode::NOT_FOUND);
    EXPECT_EQ(Ask(Question(anns, "x")).status.error_code(), StatusCode::NOT_FOUND);
    llm_.Release();
  });
  EXPECT_TRUE(answer.is_finished) << answer.status.error_message();
}

TEST_F(AccessTest, TenantsAreToldToTheLanguageService) {
  StartGateway();
  key_ = "ann user";
  ASSERT_TRUE(Ask(Question(NewSession(), "x")).status.ok());
  EXPECT_EQ(llm_.last_request().tenant(), "ann-user");
  EXPECT_EQ(llm_.last_request().weight(), 1u);
  EXPECT_FALSE(llm_.last_request().cache_salt().empty());
  auto urgent = Question(NewSession(), "x");
  urgent.set_priority(1);
  EXPECT_EQ(Ask(urgent).status.error_code(), StatusCode::PERMISSION_DENIED);
  key_ = "ann admin";
  EXPECT_TRUE(Ask(urgent).status.ok());
  EXPECT_EQ(llm_.last_request().priority(), 1);
}

TEST_F(AccessTest, KeysKeepNoMoreThanTheyMay) {
  std::ofstream(options_.keys_file)
      << "- {name: few, sha256: " << ToHex(HashBytes("few"))
      << ", sessions: 2, turns-per-session: 1, pictures: 2}\n"
      << "- {name: small, picture-bytes: 100, sha256: " << ToHex(HashBytes("small")) << "}\n"
      << "- {name: free, sha256: " << ToHex(HashBytes("free")) << "}\n";
  StartGateway();
  key_ = "few";
  const std::string one = NewSession(), two = NewSession();
  v1::CreateSessionResponse response;
  const auto third = stub_->CreateSession(Context().get(), {}, &response);
  EXPECT_EQ(third.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(third.error_message(), HasSubstr("\"few\" keeps 2 sessions, allowed are 2"));
  EXPECT_TRUE(Ask(Question(one, "a", {FakePicture(1)})).status.ok());
  EXPECT_EQ(Ask(Question(one, "b")).status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(
      Ask(Question(two, "a", {FakePicture(1), FakePicture(2), FakePicture(3)})).status.error_code(),
      StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Ask(Question(two, "a", {FakePicture(1), FakePicture(2)})).status.ok());
  key_ = "small";
  const std::string small = NewSession();
  EXPECT_TRUE(Ask(Question(small, "a", {FakePicture(1)})).status.ok());
  EXPECT_EQ(Ask(Question(small, "b", {FakePicture(2)})).status.error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Turns(small).size(), 1u) << "a refused question leaves no turn";
  key_ = "free";
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(NewSession().empty());
}

// Both make work that no other limit bounds.
TEST_F(AccessTest, UploadsAndCountsOfTokensAreRequestsOfTheirKey) {
  std::ofstream(options_.keys_file)
      << "- {name: few, sha256: " << ToHex(HashBytes("few")) << ", requests-per-minute: 2}\n";
  StartGateway();
  key_ = "few";
  const std::string session = NewSession();
  const auto upload = [&] { return Send(session, FakePicture(1)).status; };
  const auto count = [&] {
    v1::ChatServiceCountTokensRequest request;
    request.set_session_id(session);
    request.set_text("x");
    v1::ChatServiceCountTokensResponse response;
    return stub_->CountTokens(Context().get(), request, &response);
  };
  EXPECT_TRUE(upload().ok());
  EXPECT_TRUE(count().ok());
  for (const grpc::Status& status : {upload(), count(), Ask(Question(session, "x")).status}) {
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("2 questions a minute"));
  }
}

TEST_F(AccessTest, AConstraintOfASessionIsARequestOfItsKey) {
  std::ofstream(options_.keys_file)
      << "- {name: few, sha256: " << ToHex(HashBytes("few")) << ", requests-per-minute: 2}\n";
  StartGateway();
  key_ = "few";
  const std::string session = NewSession();
  const auto create = [&](const std::string& regex) {
    v1::CreateSessionRequest request;
    request.mutable_sampling()->mutable_constraint()->set_regex(regex);
    v1::CreateSessionResponse response;
    return stub_->CreateSession(Context().get(), request, &response);
  };
  const auto update = [&](const std::string& regex, const std::string& path = "sampling") {
    v1::UpdateSessionRequest request;
    request.mutable_session()->set_id(session);
    request.mutable_session()->mutable_sampling()->mutable_constraint()->set_regex(regex);
    request.mutable_update_mask()->add_paths(path);
    v1::UpdateSessionResponse response;
    return stub_->UpdateSession(Context().get(), request, &response);
  };
  EXPECT_TRUE(create("a").ok());
  EXPECT_TRUE(update("a", "title").ok()) << "sent along, and not to be changed";
  const grpc::Status bad = update("(a");
  EXPECT_EQ(bad.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(bad.error_message(), HasSubstr("constraint.regex"));
  for (const grpc::Status& status : {create("a"), update("a")}) {
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("2 questions a minute"));
  }
  EXPECT_FALSE(NewSession().empty()) << "without one it costs nothing";
}

// Sessions from before keys were given are the admins'.
TEST_F(AccessTest, SessionsWithoutOwnerAreForAdmins) {
  const std::string file = options_.keys_file;
  options_.keys_file.clear();
  StartGateway();
  const std::string old = NewSession();
  StopGateway();
  options_.keys_file = file;
  StartGateway();
  EXPECT_THAT(Sessions("ann user"), ElementsAre());
  EXPECT_THAT(Sessions("ann admin"), ElementsAre(old));
}

}  // namespace
}  // namespace llava
