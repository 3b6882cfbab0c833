// The vision service over loopback with the fixture tower.

#include "server/vision/vision_service.h"

#include <ATen/ops/from_blob.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "model/checkpoint/tensor_file.h"
#include "server/wire/feature_key.h"
#include "server/wire/tensor_stream.h"
#include "tests/server/vision/vision_test_server.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

std::string Picture(const std::string& name) { return FixturePicture(name); }

void AddCanvas(v1::VisionSpec& spec, uint32_t width, uint32_t height) {
  v1::GridPoint& canvas = *spec.add_grid();
  canvas.set_width(width);
  canvas.set_height(height);
}

struct Encoded {
  grpc::Status status;
  v1::EncodeHeader header;
  std::string bytes;
};

class VisionServiceTest : public ::testing::Test {
 protected:
  VisionServiceTest() {
    stub_ = v1::VisionService::NewStub(here_.channel);
    spec_.set_tower_digest(ToBytes(here_.engine().info().digest));
    spec_.set_image_mode(v1::IMAGE_MODE_PAD);
    spec_.set_select_layer(-2);
    spec_.set_select_feature(v1::SELECT_FEATURE_PATCH);
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

  VisionTestServer here_;
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
  auto assembler = TensorAssembler::Create(result.header.tensor());
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
  // Canvases of the anyres mode: whole tiles of 56 pixels, not too many of them.
  for (const auto& [width, height] :
       {std::pair(56u, 57u), {0u, 56u}, {4294967240u, 56u}, {56u * 37, 56u}}) {
    const grpc::Status anyres = refused(good, [&](auto& spec) {
      spec.set_image_mode(v1::IMAGE_MODE_ANYRES);
      AddCanvas(spec, 112, 56);
      AddCanvas(spec, width, height);
    });
    EXPECT_EQ(anyres.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(anyres.error_message(), HasSubstr("grid[1]"));
  }
  EXPECT_EQ(refused(good, [](auto& spec) { AddCanvas(spec, 56, 56); }).error_code(),
            StatusCode::INVALID_ARGUMENT)
      << "a grid without its mode";
  EXPECT_EQ(
      refused(good, [](auto& spec) { spec.set_image_mode(v1::IMAGE_MODE_ANYRES); }).error_code(),
      StatusCode::INVALID_ARGUMENT)
      << "the mode without a grid";
  EXPECT_TRUE(Encode(good, spec_).status.ok());
  EXPECT_THAT(here_.metrics.Render(),
              HasSubstr("llava_vision_requests_total{code=\"NOT_FOUND\"} 1"));
}

TEST_F(VisionServiceTest, GivesAnOverviewAndTilesOfAnyres) {
  spec_.set_image_mode(v1::IMAGE_MODE_ANYRES);
  for (const auto& [width, height] : {std::pair(56u, 112u), {112u, 56u}, {112u, 112u}}) {
    AddCanvas(spec_, width, height);
  }
  const std::string wide = Picture("wide_300x41.jpg"), tall = Picture("tall_37x200.png");
  for (const auto& [image, width, height] :
       {std::tuple(wide, 112u, 56u), std::tuple(tall, 56u, 112u)}) {
    const Encoded result = Encode(image, spec_);
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.header.canvas().width(), width);
    EXPECT_EQ(result.header.canvas().height(), height);
    EXPECT_EQ(result.header.tensor().shape(0), 3 * 16) << "an overview and two tiles";
    EXPECT_EQ(result.bytes.size(), result.header.tensor().size_bytes());
    EXPECT_EQ(result.header.key().SerializeAsString(),
              MakeFeatureKey(HashBytes(image), spec_, "cpu-f32").SerializeAsString());
    const Encoded again = Encode(image, spec_);
    EXPECT_TRUE(again.header.cached());
    EXPECT_EQ(again.header.canvas().width(), width);
    EXPECT_EQ(again.bytes, result.bytes);
  }
  // Another grid, another feature.
  v1::VisionSpec other = spec_;
  AddCanvas(other, 168, 56);
  const Encoded result = Encode(wide, other);
  EXPECT_FALSE(result.header.cached());
  EXPECT_EQ(result.header.canvas().width(), 168u);
  EXPECT_EQ(result.header.tensor().shape(0), 4 * 16);
}

TEST_F(VisionServiceTest, DroppedPicturesAreEncodedAnew) {
  const std::string image = Picture("gray.png");
  v1::VisionServiceDropFeaturesRequest request;
  const auto drop = [&](uint32_t* dropped = nullptr) {
    grpc::ClientContext context;
    v1::VisionServiceDropFeaturesResponse response;
    const grpc::Status status = stub_->DropFeatures(&context, request, &response);
    if (dropped) *dropped = response.dropped();
    return status;
  };
  const std::string features = Encode(image, spec_).bytes;
  EXPECT_TRUE(Encode(image, spec_).header.cached());
  request.add_image_sha256(ToBytes(HashBytes(image)));
  uint32_t dropped = 0;
  EXPECT_TRUE(drop(&dropped).ok());
  EXPECT_EQ(dropped, 1u);
  const Encoded again = Encode(image, spec_);
  EXPECT_FALSE(again.header.cached());
  EXPECT_EQ(again.bytes, features);
  for (int i = 0; i < kMostDropped; ++i) request.add_image_sha256(std::string(32, 'x'));
  grpc::Status status = drop();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("names 257 pictures, at most 256"));
  request.clear_image_sha256();
  request.add_image_sha256(std::string(31, 'x'));
  status = drop();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("image_sha256 has 31 bytes"));
  here_.admission.StartDraining();
  EXPECT_EQ(drop().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(VisionServiceTest, RefusesWhileLoadingAndWhileDraining) {
  here_.loader->Unroute("clip", 7);
  EXPECT_EQ(Encode(Picture("gray.png"), spec_).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  here_.loader->Route(here_.servable);
  EXPECT_TRUE(Encode(Picture("gray.png"), spec_).status.ok());
  here_.admission.StartDraining();
  EXPECT_EQ(Encode(Picture("gray.png"), spec_).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  // The client may hear of the end a little before the call is counted out.
  EXPECT_TRUE(
      here_.admission.WaitUntilIdle(CondVar::Clock::now() + kSlowdown * std::chrono::seconds(60)));
}

TEST_F(VisionServiceTest, ServesTheTowerThatIsAskedFor) {
  const std::string emoji = SourceDir() + "/deploy/models/emoji-tower/1";
  const auto other = here_.loader->Load({"emoji-tower", 1, emoji}, {});
  ASSERT_TRUE(other.ok()) << other.status();
  v1::VisionSpec of_other = spec_;
  of_other.set_tower_digest((*other)->info().model().digest());
  const grpc::Status missing = Encode(Picture("gray.png"), of_other).status;
  EXPECT_EQ(missing.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(missing.error_message(), HasSubstr("clip 7")) << "what there is";
  here_.loader->Route(*other);
  const Encoded first = Encode(Picture("gray.png"), spec_);
  const Encoded second = Encode(Picture("gray.png"), of_other);
  ASSERT_TRUE(first.status.ok() && second.status.ok()) << second.status.error_message();
  EXPECT_NE(first.bytes, second.bytes);
  EXPECT_NE(first.header.key().spec_digest(), second.header.key().spec_digest());

  // A tower that went and came back: its features are still known.
  here_.loader->Unroute("clip", 7);
  EXPECT_EQ(Encode(Picture("gray.png"), spec_).status.error_code(), grpc::StatusCode::NOT_FOUND);
  here_.loader->Route(here_.servable);
  EXPECT_TRUE(Encode(Picture("gray.png"), spec_).header.cached());
}

}  // namespace
}  // namespace llava
