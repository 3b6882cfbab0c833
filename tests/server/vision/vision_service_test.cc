// The vision service over loopback with the fixture tower.

#include "server/vision/vision_service.h"

#include <ATen/ops/from_blob.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "model/checkpoint/tensor_file.h"
#include "server/vision/vision_options.h"
#include "server/wire/feature_key.h"
#include "server/wire/tensor_stream.h"
#include "tests/support/fixtures.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

std::string Picture(const std::string& name) {
  std::ifstream stream(FixturesDir() / "images" / name, std::ios::binary);
  std::stringstream bytes;
  bytes << stream.rdbuf();
  return bytes.str();
}

struct Encoded {
  grpc::Status status;
  v1::EncodeHeader header;
  std::string bytes;
};

class VisionServiceTest : public ::testing::Test {
 protected:
  VisionServiceTest() {
    VisionOptions options;
    options.tower.model = (FixturesDir() / "clip-tower").string();
    options.engine.limits.max_bytes = 100'000;
    options.engine.limits.max_pixels = 20'000;
    auto tower = OpenTowerWorkers(options.tower);
    if (!tower.ok()) throw std::runtime_error(tower.status().ToString());
    engine_ = std::make_unique<VisionEngine>(options.engine, *std::move(tower), metrics_);
    if (auto status = engine_->WaitUntilReady(); !status.ok()) {
      throw std::runtime_error(status.ToString());
    }
    service_ =
        std::make_unique<VisionService>(admission_, metrics_, options.engine.limits.max_bytes);
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::VisionService::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                                           grpc::InsecureChannelCredentials()));
    spec_.set_tower_digest(ToBytes(engine_->info().digest));
    spec_.set_image_mode(v1::IMAGE_MODE_PAD);
    spec_.set_select_layer(-2);
    spec_.set_select_feature(v1::SELECT_FEATURE_PATCH);
    service_->SetEngine(engine_.get());
  }

  Encoded Encode(const std::string& image, const v1::VisionSpec& spec) {
    Encoded result;
    grpc::ClientContext context;
    v1::EncodeRequest request;
    request.set_image(image);
    *request.mutable_spec() = spec;
    auto reader = stub_->Encode(&context, request);
    v1::EncodeResponse response;
    while (reader->Read(&response)) {
      if (response.has_header()) {
        result.header = response.header();
      } else {
        EXPECT_LE(response.chunk().size(), kMaxChunkBytes);
        result.bytes += response.chunk();
      }
    }
    result.status = reader->Finish();
    return result;
  }

  Metrics metrics_{"vision"};
  Admission admission_;
  std::unique_ptr<VisionEngine> engine_;
  std::unique_ptr<VisionService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::VisionService::Stub> stub_;
  v1::VisionSpec spec_;
};

TEST_F(VisionServiceTest, GivesTheFeaturesOfTheOracle) {
  const auto expected = TensorFile::Open(FixturesDir() / "expected" / "vision.safetensors")
                            ->Get("plain.png/hidden_select_with_cls")
                            .clone();
  spec_.set_select_feature(v1::SELECT_FEATURE_CLS_PATCH);
  const std::string image = Picture("plain.png");
  const Encoded result = Encode(image, spec_);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  auto assembler = TensorAssembler::Create(result.header.tensor(), 1 << 20);
  ASSERT_TRUE(assembler.ok()) << assembler.status();
  ASSERT_TRUE(assembler->Add(result.bytes).ok());
  std::string bytes = std::move(*assembler).Finish().value();
  ASSERT_EQ(result.header.tensor().shape(0), expected.size(0));
  ASSERT_EQ(result.header.tensor().shape(1), expected.size(1));
  const at::Tensor features = at::from_blob(bytes.data(), expected.sizes(), at::kBFloat16);
  const at::Tensor given = features.to(at::kFloat).contiguous(), wanted = expected.contiguous();
  for (int64_t i = 0; i < wanted.numel(); ++i) {
    const float value = wanted.const_data_ptr<float>()[i];
    ASSERT_NEAR(given.const_data_ptr<float>()[i], value, 2e-4 + std::abs(value) / 256)
        << "beyond the rounding to bfloat16, at " << i;
  }
  EXPECT_EQ(result.header.key().SerializeAsString(),
            MakeFeatureKey(HashBytes(image), spec_, "cpu-f32").SerializeAsString());
  EXPECT_FALSE(result.header.cached());
  EXPECT_TRUE(Encode(image, spec_).header.cached());
  spec_.set_select_feature(v1::SELECT_FEATURE_PATCH);
  const Encoded patches = Encode(image, spec_);
  EXPECT_EQ(patches.header.tensor().shape(0), expected.size(0) - 1);
  EXPECT_EQ(patches.bytes, bytes.substr(bytes.size() - patches.bytes.size()));
}

TEST_F(VisionServiceTest, RefusesWhatItCannotDoAndSaysWhy) {
  using grpc::StatusCode;
  const auto refused = [this](const std::string& image, auto change) {
    v1::VisionSpec spec = spec_;
    change(spec);
    return Encode(image, spec).status;
  };
  const auto as_it_is = [](v1::VisionSpec&) {};
  const std::string good = Picture("gray.png");
  EXPECT_EQ(refused("", as_it_is).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused("GIF89a......................", as_it_is).error_code(),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused(good.substr(0, good.size() / 2), as_it_is).error_code(),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused(std::string(100'001, 'x'), as_it_is).error_message(), HasSubstr("100000"));
  EXPECT_EQ(refused(good, [](auto& spec) { spec.set_select_layer(99); }).error_code(),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused(good, [](auto& spec) { spec.clear_select_feature(); }).error_code(),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(
      refused(good, [](auto& spec) { spec.set_tower_digest(std::string(32, 'x')); }).error_code(),
      StatusCode::NOT_FOUND);
  const grpc::Status anyres = refused(good, [](auto& spec) {
    spec.set_image_mode(v1::IMAGE_MODE_ANYRES);
    spec.add_grid()->set_width(336);
  });
  EXPECT_EQ(anyres.error_code(), StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(anyres.error_message(), HasSubstr("image_mode"));
  EXPECT_TRUE(Encode(good, spec_).status.ok());
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("llava_vision_requests_total{code=\"UNIMPLEMENTED\"} 1"));
}

TEST_F(VisionServiceTest, RefusesWhileLoadingAndWhileDraining) {
  service_->SetEngine(nullptr);
  EXPECT_EQ(Encode(Picture("gray.png"), spec_).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  service_->SetEngine(engine_.get());
  EXPECT_TRUE(Encode(Picture("gray.png"), spec_).status.ok());
  admission_.StartDraining();
  EXPECT_EQ(Encode(Picture("gray.png"), spec_).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  // The client may hear of the end a little before the call is counted out.
  EXPECT_TRUE(
      admission_.WaitUntilIdle(CondVar::Clock::now() + kSlowdown * std::chrono::seconds(10)));
}

}  // namespace
}  // namespace llava
