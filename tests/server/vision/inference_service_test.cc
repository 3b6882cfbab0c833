// The Open Inference Protocol over loopback with the fixture tower.

#include "server/vision/inference_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "llava/v1/vision.grpc.pb.h"
#include "model/image/decode.h"
#include "model/image/image.h"
#include "server/vision/infer_request.h"
#include "server/wire/feature_key.h"
#include "tests/server/vision/vision_test_server.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Request = inference::ModelInferRequest;
using Response = inference::ModelInferResponse;

std::string Bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// A file as an element of a raw BYTES tensor.
std::string Element(const std::string& file) {
  const auto size = static_cast<uint32_t>(file.size());
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + file;
}

class InferenceServiceTest : public ::testing::Test {
 protected:
  InferenceServiceTest() : stub_(inference::GRPCInferenceService::NewStub(here_.channel)) {}

  const PreprocessConfig& preprocess() { return here_.engine().info().preprocess; }
  size_t floats() {
    const auto side = static_cast<size_t>(preprocess().image_size);
    return 3 * side * side;
  }
  std::vector<float> Pixels(const std::string& name) {
    const std::string file = FixturePicture(name);
    const Image image = DecodeImage({reinterpret_cast<const uint8_t*>(file.data()), file.size()});
    return NormalizePixels(FitToTower(image, ImageMode::kPad, preprocess()), preprocess());
  }

  Request PixelRequest(int64_t batch) {
    Request request;
    request.set_model_name("clip");
    request.set_id("request-1");
    auto& input = *request.add_inputs();
    input.set_name("pixel_values");
    input.set_datatype("FP32");
    for (const int64_t side : {batch, int64_t{3}, preprocess().image_size, preprocess().image_size})
      input.add_shape(side);
    return request;
  }
  static Request ImageRequest(const std::vector<std::string>& files) {
    Request request;
    request.set_model_name("clip");
    auto& input = *request.add_inputs();
    input.set_name("image");
    input.set_datatype("BYTES");
    input.add_shape(static_cast<int64_t>(files.size()));
    input.add_shape(1);
    std::string raw;
    for (const std::string& file : files) raw += Element(file);
    request.add_raw_input_contents(raw);
    return request;
  }

  grpc::Status Infer(const Request& request, Response* response) {
    grpc::ClientContext context;
    response->Clear();
    return stub_->ModelInfer(&context, request, response);
  }
  void Refuses(const Request& request, const std::string& hint,
               grpc::StatusCode code = grpc::StatusCode::INVALID_ARGUMENT) {
    Response response;
    const grpc::Status status = Infer(request, &response);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(hint));
  }

  VisionTestServer here_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

TEST_F(InferenceServiceTest, FilesAndTensorsGiveTheFeaturesOfOurOwnProtocol) {
  // By our own.
  auto own = v1::VisionService::NewStub(here_.channel);
  v1::EncodeRequest encode;
  encode.set_image(FixturePicture("plain.png"));
  encode.mutable_spec()->set_tower_digest(ToBytes(here_.engine().info().digest));
  encode.mutable_spec()->set_image_mode(v1::IMAGE_MODE_PAD);
  encode.mutable_spec()->set_select_layer(-2);
  encode.mutable_spec()->set_select_feature(v1::SELECT_FEATURE_PATCH);
  grpc::ClientContext context;
  auto reader = own->Encode(&context, encode);
  v1::EncodeResponse part;
  std::string expected;
  while (reader->Read(&part)) expected += part.chunk();
  ASSERT_TRUE(reader->Finish().ok());

  Request request = ImageRequest({FixturePicture("plain.png"), FixturePicture("rgba.png")});
  request.add_outputs()->set_name("features_bf16");
  request.add_outputs()->set_name("features");
  Response files;
  grpc::Status status = Infer(request, &files);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(files.model_name(), "clip");
  EXPECT_EQ(files.model_version(), "7");
  EXPECT_EQ(files.parameters().at("tower_digest").string_param(),
            ToHex(here_.engine().info().digest));
  ASSERT_EQ(files.outputs_size(), 2);
  EXPECT_EQ(files.outputs(0).datatype(), "BF16");
  EXPECT_EQ(files.outputs(1).datatype(), "FP32");
  const TowerInfo& tower = here_.engine().info();
  EXPECT_THAT(files.outputs(0).shape(), ElementsAre(2, tower.num_patches, tower.width));
  const std::string& bf16 = files.raw_output_contents(0);
  EXPECT_EQ(bf16.substr(0, expected.size()), expected);
  const std::string& fp32 = files.raw_output_contents(1);
  ASSERT_EQ(fp32.size(), 2 * bf16.size());
  for (size_t i = 0; i < bf16.size() / 2; ++i) {
    ASSERT_EQ(fp32.substr(4 * i + 2, 2), bf16.substr(2 * i, 2));
    ASSERT_EQ(fp32.substr(4 * i, 2), std::string(2, '\0'));
  }
  EXPECT_THAT(here_.metrics.Render(), HasSubstr("llava_vision_feature_cache_hits_total 1"))
      << "both protocols share the cache";

  // Typed and raw tensors.
  request = PixelRequest(1);
  request.add_outputs()->set_name("features_bf16");
  for (const float value : Pixels("plain.png")) {
    request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(value);
  }
  Response typed;
  status = Infer(request, &typed);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(typed.id(), "request-1");
  EXPECT_EQ(typed.raw_output_contents(0), expected);
  request = PixelRequest(2);
  request.add_outputs()->set_name("features_bf16");
  request.add_raw_input_contents(Bytes(Pixels("gray.png")) + Bytes(Pixels("plain.png")));
  Response raw;
  ASSERT_TRUE(Infer(request, &raw).ok());
  EXPECT_EQ(raw.raw_output_contents(0).substr(expected.size()), expected);
}

TEST_F(InferenceServiceTest, ParametersChooseLayerRowsAndMode) {
  Request request = ImageRequest({FixturePicture("tall_37x200.png")});
  Response plain, changed;
  ASSERT_TRUE(Infer(request, &plain).ok());
  auto& parameters = *request.mutable_parameters();
  parameters["select_feature"].set_string_param("cls_patch");
  ASSERT_TRUE(Infer(request, &changed).ok());
  EXPECT_EQ(changed.outputs(0).shape(1), plain.outputs(0).shape(1) + 1);
  parameters.clear();
  parameters["image_mode"].set_string_param("crop");
  ASSERT_TRUE(Infer(request, &changed).ok());
  EXPECT_NE(changed.raw_output_contents(0), plain.raw_output_contents(0));
  parameters.clear();
  parameters["select_layer"].set_int64_param(-1);
  ASSERT_TRUE(Infer(request, &changed).ok());
  EXPECT_NE(changed.raw_output_contents(0), plain.raw_output_contents(0));
  parameters["select_layer"].set_int64_param(-2);
  ASSERT_TRUE(Infer(request, &changed).ok());
  EXPECT_EQ(changed.raw_output_contents(0), plain.raw_output_contents(0));

  parameters["select_layer"].set_int64_param(99);
  Refuses(request, "select_layer");
  parameters["select_layer"].set_string_param("-2");
  Refuses(request, "select_layer");
  parameters.clear();
  parameters["select_feature"].set_string_param("all");
  Refuses(request, "select_feature");
  parameters.clear();
  parameters["temperature"].set_double_param(1);
  Refuses(request, "temperature");
  parameters.clear();
  parameters["timeout"].set_int64_param(-1);
  Refuses(request, "timeout");
  request = PixelRequest(1);
  request.add_raw_input_contents(Bytes(Pixels("plain.png")));
  (*request.mutable_parameters())["image_mode"].set_string_param("pad");
  Refuses(request, "image_mode");
}

TEST_F(InferenceServiceTest, TilesOfAnyresAreRowsOfAPicture) {
  const std::string wide = FixturePicture("wide_300x41.jpg"), tall = FixturePicture("plain.png");
  Request request = ImageRequest({wide});
  Response response;
  auto& parameters = *request.mutable_parameters();
  parameters["image_mode"].set_string_param("anyres");
  Refuses(request, "grid");
  parameters["grid"].set_string_param("168x56,112x112,56x56");
  const grpc::Status status = Infer(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const TowerInfo& tower = here_.engine().info();
  EXPECT_THAT(response.outputs(0).shape(), ElementsAre(1, 4 * tower.num_patches, tower.width));
  for (const char* grid : {"", "168", "168x56,", "168x56x3", "168x-56", "168 x 56 pixels"}) {
    parameters["grid"].set_string_param(grid);
    Refuses(request, "grid");
  }
  parameters["grid"].set_string_param("168x56,100x56");
  Refuses(request, "grid[1] is 100 x 56");

  // One tensor holds equal numbers of rows only.
  Request mixed = ImageRequest({wide, tall});
  *mixed.mutable_parameters() = request.parameters();
  (*mixed.mutable_parameters())["grid"].set_string_param("168x56,112x112,56x56");
  Refuses(mixed, "image[1]: has");
  (*mixed.mutable_parameters())["image_mode"].set_string_param("pad");
  Refuses(mixed, "grid");
}

TEST_F(InferenceServiceTest, RefusesWrongTensorsAndSaysWhich) {
  const std::string good = Bytes(Pixels("plain.png"));
  const auto pixels = [&](auto change) {
    Request request = PixelRequest(2);
    request.add_raw_input_contents(good + good);
    change(request);
    return request;
  };
  Refuses(pixels([](Request& r) { r.clear_inputs(); }), "0 inputs");
  Refuses(pixels([](Request& r) { *r.add_inputs() = r.inputs(0); }), "2 inputs");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->set_name("pixels"); }), "pixels");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->set_datatype("FP16"); }), "FP16");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->set_shape(1, 4); }), "[2,4,");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->add_shape(1); }), "shape");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->clear_shape(); }), "[]");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->set_shape(0, 0); }), "0 pictures");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->set_shape(0, -1); }), "-1 pictures");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->set_shape(0, INT64_MAX); }), "--max-batch");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->set_shape(0, 1); }), "bytes of FP32");
  Refuses(pixels([](Request& r) { r.mutable_raw_input_contents(0)->pop_back(); }), "bytes of FP32");
  Refuses(pixels([](Request& r) { r.add_raw_input_contents("x"); }), "raw_input_contents");
  Refuses(pixels([](Request& r) { r.mutable_inputs(0)->mutable_contents(); }), "both");
  Refuses(pixels([](Request& r) { r.clear_raw_input_contents(); }), "0 bytes");
  Refuses(pixels([](Request& r) { r.add_outputs()->set_name("logits"); }), "outputs[0] \"logits\"");
  Refuses(pixels([](Request& r) {
            r.add_outputs()->set_name("features");
            r.add_outputs()->set_name("features");
          }),
          "twice");
  Refuses(
      pixels([](Request& r) {
        (*r.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("x");
      }),
      "shared_memory_region");
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Refuses(pixels([&](Request& r) {
              std::memcpy(r.mutable_raw_input_contents(0)->data() + good.size() + 40, &value,
                          sizeof(value));
            }),
            "pixel_values[1]: value 10 of the picture is not finite");
  }
  Refuses(pixels([&](Request& r) {  // finite, but no picture: the tower overflows
            const float huge = 3e38f;
            for (size_t i = 0; i < floats(); ++i) {
              std::memcpy(r.mutable_raw_input_contents(0)->data() + 4 * i, &huge, sizeof(huge));
            }
          }),
          "pixel_values[0]: ");
  EXPECT_EQ(here_.engine().statistics().nan_outputs, 0u) << "that was not the tower's fault";

  Refuses(pixels([](Request& r) { r.set_model_name("gpt"); }), "clip 7",
          grpc::StatusCode::NOT_FOUND);
  Refuses(pixels([](Request& r) { r.set_model_version("8"); }), "version 8",
          grpc::StatusCode::NOT_FOUND);
  Refuses(pixels([](Request& r) { r.set_model_version("new"); }), "not a number");
  Response response;
  EXPECT_TRUE(Infer(pixels([](Request&) {}), &response).ok()) << "the worker is unharmed";
  EXPECT_THAT(here_.metrics.Render(),
              HasSubstr("llava_vision_infer_requests_total{code=\"NOT_FOUND\"} 2"));
}

TEST_F(InferenceServiceTest, RefusesBadPicturesAndSaysWhich) {
  const std::string good = FixturePicture("plain.png");
  Refuses(ImageRequest({good, "GIF89a......................"}), "image[1]: ");
  Refuses(ImageRequest({good, good + "x", good.substr(0, good.size() / 2)}), "image[2]: ");
  Refuses(ImageRequest({"", good}), "image[0]: the file is empty");
  Refuses(ImageRequest({good, std::string(100'001, 'x')}), "image[1]: the picture has 100001");
  Refuses(ImageRequest({good, good, good, good, good}), "5 pictures");
  Request request = ImageRequest({good, good});
  request.mutable_raw_input_contents(0)->pop_back();
  Refuses(request, "image[1]: says");
  request = ImageRequest({good, good});
  request.mutable_inputs(0)->set_shape(0, 3);
  Refuses(request, "2 elements, 3");
  request.mutable_inputs(0)->set_shape(0, 1);
  Refuses(request, "behind element 1 of 1");
  request = ImageRequest({good});
  *request.mutable_raw_input_contents(0) += "abc";
  Refuses(request, "3 bytes behind");
  request = ImageRequest({good});
  request.clear_raw_input_contents();
  request.mutable_inputs(0)->mutable_contents()->add_bytes_contents(good);
  Response response;
  EXPECT_TRUE(Infer(request, &response).ok()) << "typed contents";
  EXPECT_EQ(response.outputs(0).shape(0), 1);
}

// Whatever arrives, checking it is harmless, and what passes has the shape that the engine needs.
TEST_F(InferenceServiceTest, NoMutationOfARequestDoesHarm) {
  Request pixels = PixelRequest(2), images = ImageRequest({"\x89PNG", "BM", "\xff\xd8\xff"});
  pixels.add_raw_input_contents(std::string(2 * floats() * sizeof(float), '\0'));
  pixels.add_outputs()->set_name("features");
  (*images.mutable_parameters())["select_layer"].set_int64_param(-2);
  std::mt19937 random(7);
  int passed = 0;
  for (int round = 0; round < 4000; ++round) {
    const Request& original = round % 2 == 0 ? pixels : images;
    std::string bytes = original.SerializeAsString();
    const size_t head = std::min<size_t>(bytes.size(), 120);  // names, types, shapes, lengths
    for (int change = 0; change < 1 + round % 3; ++change) {
      bytes[random() % head] = static_cast<char>(random());
    }
    if (round % 5 == 0) bytes.resize(random() % bytes.size());
    Request request;
    if (!request.ParseFromString(bytes)) continue;
    const auto plan = PlanInference(request, here_.engine().info(), here_.engine().options());
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++passed;
    ASSERT_GE(plan->jobs.size(), 1u);
    ASSERT_LE(plan->jobs.size(), 4u);
    for (const EncodeJob& job : plan->jobs) {
      ASSERT_TRUE(job.image.empty() ? job.pixels.size() == floats() : job.pixels.empty());
    }
  }
  EXPECT_GT(passed, 0);
}

TEST_F(InferenceServiceTest, ATimeoutIsADeadline) {
  Request request = ImageRequest({FixturePicture("plain.png")});
  (*request.mutable_parameters())["timeout"].set_int64_param(1);
  Refuses(request, "deadline", grpc::StatusCode::DEADLINE_EXCEEDED);
  (*request.mutable_parameters())["timeout"].set_int64_param(INT64_MAX);
  grpc::ClientContext context;
  inference::ModelInferResponse response;
  const grpc::Status status = stub_->ModelInfer(&context, request, &response);
  EXPECT_TRUE(status.ok()) << "as good as none: " << status.error_message();
}

TEST_F(InferenceServiceTest, TellsWhatThereIs) {
  grpc::ClientContext contexts[12];
  inference::ServerLiveResponse live;
  ASSERT_TRUE(stub_->ServerLive(&contexts[0], {}, &live).ok());
  EXPECT_TRUE(live.live());
  inference::ServerReadyResponse ready;
  ASSERT_TRUE(stub_->ServerReady(&contexts[1], {}, &ready).ok());
  EXPECT_TRUE(ready.ready());
  inference::ModelReadyRequest ask;
  inference::ModelReadyResponse model;
  ask.set_name("clip");
  ASSERT_TRUE(stub_->ModelReady(&contexts[2], ask, &model).ok());
  EXPECT_TRUE(model.ready());
  ask.set_version("8");
  ASSERT_TRUE(stub_->ModelReady(&contexts[3], ask, &model).ok());
  EXPECT_FALSE(model.ready());

  inference::ModelMetadataRequest of_clip;
  of_clip.set_name("clip");
  inference::ModelMetadataResponse metadata;
  ASSERT_TRUE(stub_->ModelMetadata(&contexts[4], of_clip, &metadata).ok());
  EXPECT_THAT(metadata.versions(), ElementsAre("7"));
  ASSERT_EQ(metadata.inputs_size(), 2);
  EXPECT_EQ(metadata.inputs(0).name(), "pixel_values");
  EXPECT_THAT(metadata.inputs(0).shape(),
              ElementsAre(-1, 3, preprocess().image_size, preprocess().image_size));
  EXPECT_EQ(metadata.inputs(1).datatype(), "BYTES");
  EXPECT_EQ(metadata.outputs(1).datatype(), "BF16");

  inference::ModelConfigRequest config_of_clip;
  config_of_clip.set_name("clip");
  inference::ModelConfigResponse config;
  ASSERT_TRUE(stub_->ModelConfig(&contexts[5], config_of_clip, &config).ok());
  EXPECT_EQ(config.config().max_batch_size(), 4);
  EXPECT_THAT(config.config().dynamic_batching().preferred_batch_size(), ElementsAre(2, 4));
  EXPECT_EQ(config.config().input(1).data_type(), inference::TYPE_STRING);
  EXPECT_TRUE(config.config().input(1).optional());
  config_of_clip.set_name("gpt");
  EXPECT_EQ(stub_->ModelConfig(&contexts[6], config_of_clip, &config).error_code(),
            grpc::StatusCode::NOT_FOUND);

  Response response;
  ASSERT_TRUE(Infer(ImageRequest({FixturePicture("plain.png")}), &response).ok());
  inference::ModelStatisticsResponse statistics;
  ASSERT_TRUE(stub_->ModelStatistics(&contexts[7], {}, &statistics).ok());
  ASSERT_EQ(statistics.model_stats_size(), 1);
  EXPECT_EQ(statistics.model_stats(0).inference_count(), 1u);
  EXPECT_EQ(statistics.model_stats(0).inference_stats().success().count(), 1u);
  EXPECT_GT(statistics.model_stats(0).inference_stats().compute_infer().ns(), 0u);
  EXPECT_EQ(statistics.model_stats(0).batch_stats(0).batch_size(), 1u);

  here_.admission.StartDraining();
  ASSERT_TRUE(stub_->ServerReady(&contexts[8], {}, &ready).ok());
  EXPECT_FALSE(ready.ready());
  Refuses(ImageRequest({FixturePicture("plain.png")}), "draining", grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace llava
