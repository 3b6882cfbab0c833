// Features on their way to clients that read slowly, or not at all.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/runtime/logging.h"
#include "server/vision/inference_service.h"
#include "server/vision/tower_set.h"
#include "server/vision/vision_service.h"
#include "tests/server/vision/engine_harness.h"
#include "tests/support/eventually.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

// Far more than a connection takes from a sender whose peer does not read.
constexpr int64_t kRows = 4096, kWidth = 4096;
constexpr size_t kFeatureBytes = kRows * kWidth * 2;

class WideEncoder : public PictureEncoder {
 public:
  std::vector<std::string> Encode(std::span<const std::vector<float>> pixels, int64_t,
                                  SelectFeature) override {
    return std::vector<std::string>(pixels.size(), std::string(kFeatureBytes, '\1'));
  }
};

class VisionDeliveryTest : public ::testing::Test {
 protected:
  VisionDeliveryTest() {
    LoadedTower tower;
    tower.info.digest = HashBytes("wide");
    tower.info.num_layers = 8;
    tower.info.num_patches = kRows;
    tower.info.width = kWidth;
    tower.info.preprocess.image_size = 8;
    tower.info.numerics = "test-f32";
    tower.factory = [](int) { return std::make_unique<WideEncoder>(); };
    engine_ =
        std::make_shared<VisionEngine>(VisionEngine::Options{}, std::move(tower), cache_, metrics_);
    EXPECT_TRUE(engine_->WaitUntilReady().ok());
    towers_.Route(
        std::make_shared<VisionServable>(TowerModelInfo(engine_->info(), "wide", 1), engine_));
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&vision_);
    builder.RegisterService(&inference_);
    server_ = builder.BuildAndStart();
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // takes little of what nobody reads
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::VisionService::NewStub(channel_);
    request_.set_image(Bitmap('a'));
    v1::VisionSpec& spec = *request_.mutable_spec();
    spec.set_tower_digest(ToBytes(engine_->info().digest));
    spec.set_image_mode(v1::IMAGE_MODE_CROP);
    spec.set_select_layer(-2);
    spec.set_select_feature(v1::SELECT_FEATURE_PATCH);
  }
  ~VisionDeliveryTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  // So many calls have been answered, as far as the engine is concerned.
  bool Answered(int calls) {
    const std::string line =
        "llava_vision_requests_total{code=\"OK\"} " + std::to_string(calls) + "\n";
    return Eventually([&] { return metrics_.Render().find(line) != std::string::npos; });
  }
  bool IsIdle() {
    return Eventually([&] { return admission_.in_flight() == 0 && engine_->waiting_bytes() == 0; });
  }

  Metrics metrics_{"vision"};
  Admission admission_;
  FeatureCache cache_{uint64_t{1} << 30, metrics_};
  std::shared_ptr<VisionEngine> engine_;
  TowerSet towers_{metrics_};
  VisionService vision_{towers_, cache_, admission_, metrics_};
  InferenceService inference_{towers_, {}, admission_, metrics_};
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::VisionService::Stub> stub_;
  v1::EncodeRequest request_;
};

TEST_F(VisionDeliveryTest, WhatIsNotReadCountsAndADrainWaitsForIt) {
  grpc::ClientContext context;
  auto reader = stub_->Encode(&context, request_);
  ASSERT_TRUE(Answered(1));
  EXPECT_TRUE(Eventually([&] { return engine_->waiting() + engine_->computing() == 0; }));
  EXPECT_EQ(admission_.in_flight(), 1);
  EXPECT_GE(engine_->waiting_bytes(), request_.image().size());
  EXPECT_TRUE(Eventually([&] { return towers_.List().at(0)->load().in_flight == 0; }))
      << "its version may go";
  admission_.StartDraining();
  EXPECT_FALSE(admission_.WaitUntilIdle(CondVar::Clock::now() + std::chrono::milliseconds(100)));

  v1::EncodeResponse response;
  size_t bytes = 0;
  while (reader->Read(&response)) bytes += response.chunk().size();
  EXPECT_EQ(bytes, kFeatureBytes);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(
      admission_.WaitUntilIdle(CondVar::Clock::now() + kSlowdown * std::chrono::seconds(60)));
  EXPECT_TRUE(IsIdle());
}

TEST_F(VisionDeliveryTest, ClientsThatGoGiveBackWhatTheyHeld) {
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::EncodeResponse>>> readers;
  for (int i = 0; i < 4; ++i) {  // of one picture
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub_->Encode(contexts.back().get(), request_));
  }
  ASSERT_TRUE(Answered(4));
  EXPECT_EQ(admission_.in_flight(), 4);
  EXPECT_GE(engine_->waiting_bytes(), 4 * request_.image().size());
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& reader : readers) EXPECT_FALSE(reader->Finish().ok());
  EXPECT_TRUE(IsIdle());
}

TEST_F(VisionDeliveryTest, AnInferCallHoldsItsMemoryUntilItHasEnded) {
  auto stub = inference::GRPCInferenceService::NewStub(channel_);
  grpc::ClientContext context;
  inference::ModelInferRequest request;
  inference::ModelInferResponse response;
  request.set_model_name("wide");
  auto& input = *request.add_inputs();
  input.set_name("image");
  input.set_datatype("BYTES");
  input.add_shape(2);
  input.add_shape(1);
  for (const char value : {'a', 'b'}) input.mutable_contents()->add_bytes_contents(Bitmap(value));
  const grpc::Status status = stub->ModelInfer(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(IsIdle());
  grpc::ClientContext again;
  request.set_model_name("another");
  EXPECT_FALSE(stub->ModelInfer(&again, request, &response).ok());
  EXPECT_TRUE(IsIdle());
}

TEST_F(VisionDeliveryTest, ARequestIdIsAWord) {
  request_.set_image("");
  request_.set_request_id(std::string(1 << 20, 'x'));
  grpc::ClientContext context;
  v1::EncodeResponse response;
  InitLogging({"test", "info", "text"});
  ::testing::internal::CaptureStderr();
  auto reader = stub_->Encode(&context, request_);
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("request_id="));
  EXPECT_LT(log.size(), 10'000u);
}

}  // namespace
}  // namespace llava
