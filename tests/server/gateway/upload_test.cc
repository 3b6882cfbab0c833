// Pictures sent by UploadImage.

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "google/rpc/error_details.pb.h"
#include "model/digest/sha256.h"
#include "server/gateway/request_checks.h"
#include "server/runtime/status.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;

class UploadTest : public GatewayTest {};

TEST_F(UploadTest, APictureIsSentOnceAndAskedAboutOften) {
  StartGateway();
  const std::string session = NewSession();
  const std::string picture = FakePicture(9, 5, 4);
  const Upload upload = Send(session, picture, picture.size());
  ASSERT_TRUE(upload.status.ok()) << upload.status.error_message();
  EXPECT_EQ(upload.image.id(), ToHex(HashBytes(picture)));
  EXPECT_EQ(upload.image.format(), "bmp");
  EXPECT_EQ(upload.image.width(), 5U);
  EXPECT_EQ(upload.image.height(), 4U);
  EXPECT_EQ(upload.image.size_bytes(), picture.size());
  EXPECT_EQ(Send(session, picture).image.id(), upload.image.id());

  v1::ChatRequest question = Question(session, "x");
  question.add_images()->set_id(upload.image.id());
  question.add_images()->set_id(upload.image.id());
  const Answer answer = Ask(question);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "x! pictures: 2, turns: 1");
  EXPECT_EQ(vision_.encodes(), 1);
  EXPECT_EQ(Turns(session)[0].images(1).width(), 5U);

  v1::ChatRequest elsewhere = Question(NewSession(), "x");
  elsewhere.add_images()->set_id(upload.image.id());
  EXPECT_EQ(Ask(elsewhere).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(UploadTest, IsEncodedBeforeTheQuestion) {
  StartGateway();
  const std::string session = NewSession();
  const Upload upload = Send(session, FakePicture(3));
  ASSERT_TRUE(upload.status.ok()) << upload.status.error_message();
  ASSERT_TRUE(Eventually(
      [&] { return Metric("llava_gateway_pictures_encoded_ahead_total{result=\"ok\"}") == 1; }));
  EXPECT_EQ(llm_.puts(), 1);
  v1::ChatRequest question = Question(session, "x");
  question.add_images()->set_id(upload.image.id());
  const Answer answer = Ask(question);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.finished.timings().vision_seconds(), 0);
  EXPECT_EQ(vision_.encodes(), 1);
}

TEST_F(UploadTest, AQuestionWaitsForThePictureThatIsOnItsWay) {
  vision_.Set({.pause = true});
  StartGateway();
  const std::string session = NewSession();
  const Upload upload = Send(session, FakePicture(3));
  ASSERT_TRUE(Eventually([&] { return vision_.encodes() == 1; }));
  const std::string looked = "llava_gateway_feature_cache_total{result=\"miss\"}";
  const double before = Metric(looked);
  v1::ChatRequest question = Question(session, "x");
  question.add_images()->set_id(upload.image.id());
  auto asking = std::async(std::launch::async, [&] { return Ask(question); });
  ASSERT_TRUE(Eventually([&] { return Metric(looked) > before; }));
  vision_.Release();
  const Answer answer = asking.get();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "x! pictures: 1, turns: 1");
  EXPECT_GT(answer.finished.timings().vision_seconds(), 0);
  EXPECT_EQ(vision_.encodes(), 1);
}

TEST_F(UploadTest, ACancelledQuestionDoesNotWaitForIt) {
  vision_.Set({.pause = true});
  StartGateway();
  const std::string session = NewSession();
  const Upload upload = Send(session, FakePicture(3));
  ASSERT_TRUE(Eventually([&] { return vision_.encodes() == 1; }));
  v1::ChatRequest question = Question(session, "x");
  question.add_images()->set_id(upload.image.id());
  question.set_on_disconnect(v1::ON_DISCONNECT_CANCEL);
  const Answer answer = Ask(question, {}, kSlowdown * std::chrono::milliseconds(300));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_running") == 0; }));
  EXPECT_EQ(vision_.encodes(), 1) << "which is not over";
}

// The bound is that of two pictures; those that wait are not even read.
TEST_F(UploadTest, PicturesOnTheirWayToTheTowerShareABound) {
  constexpr int kSessions = 10;
  vision_.Set({.failure = {grpc::StatusCode::INTERNAL, "not yet"}, .failures = kSessions});
  const uint64_t bytes = FakePicture(1).size();
  options_.max_image_bytes = bytes;
  options_.transfer_bytes = 2 * bytes;
  StartGateway();
  std::vector<v1::ChatRequest> questions;
  for (int i = 0; i < kSessions; ++i) {
    const std::string session = NewSession();
    const Upload upload = Send(session, FakePicture(i));
    ASSERT_TRUE(upload.status.ok()) << upload.status.error_message();
    questions.push_back(Question(session, "x"));
    questions.back().add_images()->set_id(upload.image.id());
  }
  ASSERT_TRUE(Eventually([&] {
    return Metric("llava_gateway_pictures_encoded_ahead_total{result=\"failed\"}") == kSessions;
  }));
  vision_.Set({.pause = true});
  const int before = vision_.encodes();
  std::vector<std::future<Answer>> asking;
  const auto ask = [&](int from, int to) {
    for (int i = from; i < to; ++i) {
      asking.push_back(std::async(std::launch::async, [&, i] { return Ask(questions[i]); }));
    }
  };
  ask(0, 2);
  ASSERT_TRUE(Eventually([&] { return vision_.encodes() == before + 2; }));
  ask(2, kSessions);
  const std::string held = "llava_gateway_transfer_bytes";
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_running") == kSessions; }));
  EXPECT_EQ(Metric(held), 2 * bytes);
  EXPECT_EQ(vision_.encodes(), before + 2);
  // One of those that wait is given up, and waits for nobody.
  v1::CancelTurnRequest cancel;
  cancel.set_session_id(questions.back().session_id());
  v1::CancelTurnResponse cancelled;
  EXPECT_TRUE(stub_->CancelTurn(Context().get(), cancel, &cancelled).ok());
  EXPECT_EQ(asking.back().get().finished.reason(), v1::FINISH_REASON_CANCELLED);
  vision_.Set({});
  vision_.Release();
  for (int i = 0; i + 1 < kSessions; ++i) {
    const Answer answer = asking[i].get();
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.text, "x! pictures: 1, turns: 1");
  }
  EXPECT_TRUE(Eventually([&] { return Metric(held) == 0; }));
}

TEST_F(UploadTest, TheTowerIsToldWhosePictureItIs) {
  options_.keys_file = folder_.At("keys.yaml");
  std::ofstream(options_.keys_file)
      << "- {name: ann, weight: 7, sha256: " << ToHex(HashBytes("ann")) << "}\n";
  key_ = "ann";
  StartGateway();
  const std::string session = NewSession();
  ASSERT_TRUE(Send(session, FakePicture(1)).status.ok());
  ASSERT_TRUE(Eventually([&] { return vision_.encodes() == 1; }));
  EXPECT_EQ(vision_.last_request().tenant(), "ann") << "ahead of the question";
  EXPECT_EQ(vision_.last_request().weight(), 7U);
  ASSERT_TRUE(Ask(Question(session, "x", {FakePicture(2)})).status.ok());
  EXPECT_EQ(vision_.encodes(), 2);
  EXPECT_EQ(vision_.last_request().tenant(), "ann");
  EXPECT_EQ(vision_.last_request().weight(), 7U);
}

TEST_F(UploadTest, RefusesWhatIsNoPictureOrTooMuch) {
  options_.max_image_bytes = 200'000;
  StartGateway();
  const std::string session = NewSession();
  const auto refused = [](const Upload& upload, grpc::StatusCode code, const std::string& part) {
    EXPECT_EQ(upload.status.error_code(), code) << upload.status.error_message();
    EXPECT_THAT(upload.status.error_message(), HasSubstr(part));
  };
  const auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  refused(Send("nobody", FakePicture(1)), grpc::StatusCode::NOT_FOUND, "CreateSession");
  refused(Send("", FakePicture(1)), kInvalid, "session_id is empty");
  refused(Send(session, ""), kInvalid, "empty");
  refused(Send(session, "%PDF-1.4"), kInvalid, "PDF");
  refused(Send(session, FakePicture(1), 5), kInvalid, "announced");
  refused(Send(session, FakePicture(1), 5000), kInvalid, "announced 5000 bytes");
  refused(Send(session, "", 300'000), kInvalid, "allowed are 200000");
  refused(Send(session, std::string(300'000, 'x'), 0, 50'000), kInvalid, "more than 200000 bytes");

  const auto context = Context();
  v1::UploadImageResponse response;
  const auto writer = stub_->UploadImage(context.get(), &response);
  v1::UploadImageRequest request;
  request.set_chunk("BM");
  writer->Write(request);
  writer->WritesDone();
  EXPECT_THAT(writer->Finish().error_message(), HasSubstr("must be the header"));
  EXPECT_TRUE(std::filesystem::is_empty(options_.data_dir + "/images"));
  EXPECT_TRUE(Send(session, FakePicture(1)).status.ok());
}

// An upload that a client has begun and lets stand.
struct OpenUpload {
  std::unique_ptr<grpc::ClientContext> context;
  v1::UploadImageResponse response;
  std::unique_ptr<grpc::ClientWriter<v1::UploadImageRequest>> writer;

  OpenUpload(v1::ChatService::Stub& stub, std::unique_ptr<grpc::ClientContext> of,
             const std::string& session, const std::string& bytes)
      : context(std::move(of)), writer(stub.UploadImage(context.get(), &response)) {
    v1::UploadImageRequest request;
    request.mutable_header()->set_session_id(session);
    writer->Write(request);
    request.set_chunk(bytes);
    if (!bytes.empty()) writer->Write(request);
  }
};

TEST_F(UploadTest, AllUploadsAndQuestionsShareABound) {
  options_.request_bytes = 300'000;
  vision_.Set({.pause = true});
  llm_.Set({.pause_after = 1});
  StartGateway();
  const std::string session = NewSession(), other = NewSession();
  const std::string picture = FakePicture(1, 200, 300);  // 180 KB
  const auto full = [](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("--request-bytes"));
    google::rpc::RetryInfo retry;
    EXPECT_TRUE(GetDetail(FromGrpc(status), &retry));
  };
  const auto held = [&] { return Metric("llava_gateway_request_bytes"); };
  {
    OpenUpload open(*stub_, Context(), session, std::string(200'000, 'x'));
    ASSERT_TRUE(Eventually([&] { return held() > 180'000; }));
    full(Send(session, picture, 0, 50'000).status);
    full(Ask(Question(session, "x", {picture})).status);
    v1::ChatServiceCountTokensRequest count;
    count.set_session_id(session);
    count.add_images()->set_data(picture);
    v1::ChatServiceCountTokensResponse counts;
    full(stub_->CountTokens(Context().get(), count, &counts));
    auto small = std::async(std::launch::async, [&] { return Ask(Question(session, "x")); });
    ASSERT_TRUE(Eventually([&] { return llm_.generates() == 1; })) << "what is small passes";
    llm_.Release();
    EXPECT_TRUE(small.get().status.ok());
    open.context->TryCancel();
    open.writer->Finish();
  }
  ASSERT_TRUE(Eventually([&] { return held() == 0; }));
  // A question holds its pictures until the services have them.
  auto asking =
      std::async(std::launch::async, [&] { return Ask(Question(session, "x y z", {picture})); });
  ASSERT_TRUE(Eventually([&] { return held() > 160'000; }));
  full(Send(other, picture, 0, 50'000).status);
  vision_.Set({});
  vision_.Release();
  ASSERT_TRUE(Eventually([&] { return held() == 0; }));
  EXPECT_EQ(Metric("llava_gateway_turns_running"), 1);
  const Upload passes = Send(other, picture, 0, 50'000);
  EXPECT_TRUE(passes.status.ok()) << passes.status.error_message();
  llm_.Release();
  const Answer answer = asking.get();
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_TRUE(Eventually([&] { return held() == 0; }));
}

TEST_F(UploadTest, PicturesAreTakenOutOfARequestNotCopied) {
  v1::ChatRequest request = Question("s", "x", {FakePicture(1, 100, 100)});
  const char* bytes = request.images(0).data().data();
  const auto images = ReadMessage(request.text(), request.mutable_images(), options_);
  ASSERT_TRUE(images.ok()) << images.status();
  EXPECT_EQ(images->at(0).bytes->data(), bytes);
}

TEST_F(UploadTest, AnUploadOfWhichNothingMoreComesIsEnded) {
  options_.upload_patience = std::chrono::milliseconds(300);
  StartGateway();
  const std::string session = NewSession();
  for (const size_t size : {0, 100'000}) {
    OpenUpload open(*stub_, Context(), session, std::string(size, 'x'));
    const grpc::Status status = open.writer->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_THAT(status.error_message(), HasSubstr("nothing more of the picture came for 0.3 s"));
  }
  EXPECT_TRUE(Eventually([&] { return admission_->in_flight() == 0; }));
  EXPECT_TRUE(Eventually([&] { return Metric("llava_gateway_request_bytes") == 0; }));
  EXPECT_EQ(Metric("llava_gateway_request_faults_total{method=\"UploadImage\"}"), 0);
  EXPECT_TRUE(Eventually([&] { return Send(session, FakePicture(1)).status.ok(); }));
}

TEST_F(UploadTest, ADrainWaitsForNoUploadThatStandsStill) {
  StartGateway();
  OpenUpload open(*stub_, Context(), NewSession(), "BM");
  ASSERT_TRUE(Eventually([&] { return admission_->in_flight() == 1; }));
  admission_->StartDraining();
  const grpc::Status status = open.writer->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("shutting down"));
  EXPECT_TRUE(Eventually([&] { return admission_->in_flight() == 0; }));
}

TEST_F(UploadTest, AClientThatLeavesDoesNoHarm) {
  StartGateway();
  const std::string session = NewSession();
  {
    const auto context = Context();
    v1::UploadImageResponse response;
    const auto writer = stub_->UploadImage(context.get(), &response);
    v1::UploadImageRequest request;
    request.mutable_header()->set_session_id(session);
    writer->Write(request);
    request.set_chunk(FakePicture(1));
    writer->Write(request);
    context->TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Eventually([&] {
    return Metric("llava_gateway_requests_total{code=\"CANCELLED\",method=\"UploadImage\"}") == 1;
  }));
  EXPECT_TRUE(std::filesystem::is_empty(options_.data_dir + "/images"));
}

}  // namespace
}  // namespace llava
