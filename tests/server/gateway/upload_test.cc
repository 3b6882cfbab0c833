// Pictures sent by UploadImage.

#include <gmock/gmock.h>

#include <filesystem>
#include <future>

#include "model/digest/sha256.h"
#include "tests/server/gateway/gateway_harness.h"

namespace llava {
namespace {

using testing::HasSubstr;

class UploadTest : public GatewayTest {
 protected:
  struct Upload {
    grpc::Status status;
    v1::ImageInfo image;
    size_t sent = 0;  // chunks before the gateway said no
  };

  Upload Send(const std::string& session, const std::string& bytes, uint64_t announced = 0,
              size_t chunk_bytes = 16) {
    Upload upload;
    const auto context = Context();
    v1::UploadImageResponse response;
    const auto writer = stub_->UploadImage(context.get(), &response);
    v1::UploadImageRequest request;
    request.mutable_header()->set_session_id(session);
    request.mutable_header()->set_size_bytes(announced);
    bool open = writer->Write(request);
    for (size_t at = 0; open && at < bytes.size(); at += chunk_bytes) {
      request.set_chunk(bytes.substr(at, chunk_bytes));
      open = writer->Write(request);
      if (open) ++upload.sent;
    }
    writer->WritesDone();
    upload.status = writer->Finish();
    upload.image = response.image();
    return upload;
  }
};

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
  v1::ChatRequest question = Question(session, "x");
  question.add_images()->set_id(upload.image.id());
  question.set_on_disconnect(v1::ON_DISCONNECT_CANCEL);
  const Answer answer = Ask(question, {}, kSlowdown * std::chrono::milliseconds(300));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(Eventually([&] { return Metric("llava_gateway_turns_running") == 0; }));
  EXPECT_EQ(vision_.encodes(), 1) << "which is not over";
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
