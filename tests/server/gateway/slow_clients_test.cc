// Clients that send much beside what is asked for, or take nothing of what they asked for.

#include <gmock/gmock.h>

#include <list>

#include "absl/strings/str_cat.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using grpc::StatusCode;
using std::chrono::hours;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;

constexpr char kHeld[] = "llava_gateway_request_bytes";

// With a field that nobody knows.
template <typename Request>
Request Padded(Request request, size_t bytes) {
  request.GetReflection()->MutableUnknownFields(&request)->AddLengthDelimited(
      1000, std::string(bytes, 'x'));
  return request;
}

class SlowClientsTest : public GatewayTest {
 protected:
  // Calls ListModels or the like, and takes the begin of its answer only when it finishes.
  template <typename Response>
  class Waiting {
   public:
    template <typename Request>
    Waiting(std::unique_ptr<grpc::ClientContext> context, v1::ChatService::Stub& stub,
            std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> (
                v1::ChatService::Stub::*prepare)(grpc::ClientContext*, const Request&,
                                                 grpc::CompletionQueue*),
            const Request& request)
        : context_(std::move(context)), call_((stub.*prepare)(context_.get(), request, &queue_)) {
      call_->StartCall();
      call_->ReadInitialMetadata(this);
    }
    void Cancel() { context_->TryCancel(); }
    grpc::Status Finish() {
      Response response;
      grpc::Status status;
      call_->Finish(&response, &status, this);
      void* tag = nullptr;
      bool ok = false;
      for (int i = 0; i < 2; ++i) queue_.Next(&tag, &ok);
      return status;
    }

   private:
    grpc::CompletionQueue queue_;
    const std::unique_ptr<grpc::ClientContext> context_;
    const std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> call_;
  };

  // With room for the five bytes before a message, and none for the message.
  std::unique_ptr<v1::ChatService::Stub> NarrowStub() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 5);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return v1::ChatService::NewStub(
        grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
  }
  double Requests(const std::string& method, const std::string& code) {
    return Metric(
        absl::StrCat("llava_gateway_requests_total{code=\"", code, "\",method=\"", method, "\"}"));
  }
};

TEST_F(SlowClientsTest, ARequestThatIsNoQuestionIsShort) {
  StartGateway();
  const std::string session = NewSession();
  const auto refused = [](const grpc::Status& status, const std::string& where = "unknown") {
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(),
                AllOf(HasSubstr("this call takes at most 1048576"), HasSubstr(where)));
  };
  constexpr size_t kLong = 1u << 20;
  v1::ChatServiceListModelsResponse models;
  refused(stub_->ListModels(Context().get(), Padded(v1::ChatServiceListModelsRequest(), kLong),
                            &models));
  v1::ListSessionsRequest page;
  page.set_page_token(std::string(kLong, 'x'));
  v1::ListSessionsResponse sessions;
  refused(stub_->ListSessions(Context().get(), page, &sessions), "are in page_token");
  v1::GetSessionRequest get;
  get.set_session_id(session);
  v1::GetSessionResponse got;
  refused(stub_->GetSession(Context().get(), Padded(get, kLong), &got));
  v1::ListModelsRequest list;
  v1::ListModelsResponse listed;
  refused(models_->ListModels(Context().get(), Padded(list, kLong), &listed));
  EXPECT_TRUE(stub_->GetSession(Context().get(), Padded(get, kLong / 2), &got).ok());

  // The longest that there is.
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_id(session);
  update.mutable_session()->set_title(std::string(1024, 't'));
  update.mutable_session()->set_system_prompt(std::string(256 << 10, 's'));
  update.mutable_session()->mutable_sampling()->mutable_constraint()->set_regex("a*");
  for (int i = 0; i < 64; ++i) {
    const std::string key = std::to_string(i);
    (*update.mutable_session()->mutable_metadata())[key + std::string(128 - key.size(), 'k')] =
        std::string(4096, 'm');
  }
  for (const char* path : {"title", "system_prompt", "metadata"}) {
    update.mutable_update_mask()->add_paths(path);
  }
  v1::UpdateSessionResponse updated;
  const auto status = stub_->UpdateSession(Context().get(), update, &updated);
  EXPECT_TRUE(status.ok()) << status.error_message();

  v1::UploadImageResponse uploaded;
  const auto context = Context();
  const auto upload = stub_->UploadImage(context.get(), &uploaded);
  v1::UploadImageRequest header;
  header.mutable_header()->set_session_id(session);
  upload->Write(Padded(header, 16 << 10));
  upload->WritesDone();
  EXPECT_THAT(upload->Finish().error_message(), HasSubstr("allowed are 16384"));
  EXPECT_TRUE(Eventually([&] { return Metric(kHeld) == 0; }));
}

// gRPC keeps a request until its client has the answer.
TEST_F(SlowClientsTest, ARequestCountsUntilTheClientHasItsAnswer) {
  options_.send_patience = hours(1);
  StartGateway();
  const auto narrow = NarrowStub();
  const auto request = Padded(v1::ChatServiceListModelsRequest(), 100'000);
  {
    Waiting<v1::ChatServiceListModelsResponse> call(
        Context(), *narrow, &v1::ChatService::Stub::PrepareAsyncListModels, request);
    ASSERT_TRUE(Eventually([&] { return Requests("ListModels", "OK") == 1; }));
    EXPECT_GT(Metric(kHeld), 90'000);
    EXPECT_TRUE(call.Finish().ok());
  }
  EXPECT_TRUE(Eventually([&] { return Metric(kHeld) == 0; }));
}

TEST_F(SlowClientsTest, WhoTakesNoAnswerLosesTheCall) {
  options_.send_patience = milliseconds(50);
  options_.resume_grace = milliseconds(50);  // so often is it looked at
  StartGateway();
  const auto narrow = NarrowStub();
  Waiting<v1::ChatServiceListModelsResponse> call(
      Context(), *narrow, &v1::ChatService::Stub::PrepareAsyncListModels,
      Padded(v1::ChatServiceListModelsRequest(), 100'000));
  ASSERT_TRUE(Eventually([&] { return Requests("ListModels", "OK") == 1; }));
  ASSERT_TRUE(Eventually([&] { return Metric(kHeld) == 0; }));
  EXPECT_EQ(call.Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(SlowClientsTest, WhoGoesTakesItsWaitingCallsWithIt) {
  options_.send_patience = hours(1);
  StartGateway();
  const auto narrow = NarrowStub();
  using Call = Waiting<v1::ListSessionsResponse>;
  const auto list = &v1::ChatService::Stub::PrepareAsyncListSessions;
  NewSession();
  const v1::ListSessionsRequest request;
  std::list<Call> pages;
  for (int i = 0; i < 16; ++i) pages.emplace_back(Context(), *narrow, list, request);
  ASSERT_TRUE(Eventually([&] { return Requests("ListSessions", "OK") == 16; }));
  Call waits(Context(), *narrow, list, Padded(request, 100'000));
  ASSERT_TRUE(Eventually([&] { return Metric(kHeld) > 0; }));
  EXPECT_EQ(Requests("ListSessions", "OK"), 16) << "a key has so many pages at a time";
  waits.Cancel();
  EXPECT_TRUE(Eventually([&] { return Requests("ListSessions", "CANCELLED") == 1; }));
  EXPECT_TRUE(Eventually([&] { return Metric(kHeld) == 0; }));
  EXPECT_EQ(waits.Finish().error_code(), StatusCode::CANCELLED);
  for (Call& page : pages) EXPECT_TRUE(page.Finish().ok());
}

}  // namespace
}  // namespace llava
