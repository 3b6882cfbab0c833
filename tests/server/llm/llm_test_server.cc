#include "tests/server/llm/llm_test_server.h"

#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "model/checkpoint/checkpoint.h"
#include "model/image/anyres.h"
#include "model/image/decode.h"
#include "model/image/image.h"
#include "model/nn/clip.h"
#include "server/wire/feature_key.h"
#include "server/wire/tensor_stream.h"
#include "tests/support/temp_folder.h"

namespace llava {

TestFeatures ComputeFeatures(const std::filesystem::path& tower_path,
                             const std::filesystem::path& image_path, const v1::VisionSpec& spec) {
  const std::string bytes = ReadBytes(image_path);
  const TowerCheckpoint checkpoint = OpenTower(tower_path);
  const ClipTower tower(checkpoint.config, checkpoint.tensors, at::kCPU, at::kFloat);
  const PreprocessConfig& preprocess = checkpoint.config.preprocess;
  const Image image = DecodeImage({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  std::vector<Image> inputs;
  if (spec.image_mode() == v1::IMAGE_MODE_ANYRES) {
    std::vector<Resolution> grid;
    for (const v1::GridPoint& point : spec.grid()) {
      grid.push_back({static_cast<int>(point.width()), static_cast<int>(point.height())});
    }
    inputs = AnyresTiles(image, grid, preprocess);
  } else {
    const bool pad = spec.image_mode() == v1::IMAGE_MODE_PAD;
    inputs = {FitToTower(image, pad ? ImageMode::kPad : ImageMode::kCrop, preprocess)};
  }
  std::vector<float> pixels;
  for (const Image& input : inputs) {
    const std::vector<float> values = NormalizePixels(input, preprocess);
    pixels.insert(pixels.end(), values.begin(), values.end());
  }
  FeatureConfig features;
  features.select_layer = spec.select_layer();
  const int64_t side = preprocess.image_size, count = static_cast<int64_t>(inputs.size());
  const at::Tensor result =
      tower.Features(at::from_blob(pixels.data(), {count, 3, side, side}, at::kFloat), features)
          .flatten(0, 1)
          .contiguous();
  TestFeatures out;
  out.header.set_image_width(static_cast<uint32_t>(image.width));
  out.header.set_image_height(static_cast<uint32_t>(image.height));
  out.bytes.assign(static_cast<const char*>(result.const_data_ptr()), result.nbytes());
  *out.header.mutable_key() = MakeFeatureKey(HashBytes(bytes), spec, "test-f32");
  *out.header.mutable_tensor() =
      DescribeTensor(v1::DATA_TYPE_FLOAT32, result.sizes().vec(), out.bytes);
  return out;
}

LlmTestServer::LlmTestServer(LlmOptions options) {
  auto model = OpenLanguageWorkers(options.language);
  if (!model.ok()) throw std::runtime_error(model.status().ToString());
  store_ = std::make_unique<FeatureStore>(options.feature_store_bytes, std::chrono::seconds(30),
                                          metrics_);
  engine_ =
      std::make_unique<LlmEngine>(options.engine, *std::move(model), metrics_,
                                  LlmEngine::Places{.devices = {}, .workers = 0, .turns = {turn_}});
  if (const auto status = engine_->WaitUntilReady(); !status.ok()) {
    throw std::runtime_error(status.ToString());
  }
  service_ = std::make_unique<LlmService>(options.service, *store_, admission_, metrics_);
  backend_ = std::make_shared<LlmBackend>(
      LanguageModelInfo(engine_->info(), options.context_tokens, options.DefaultSampling()),
      *engine_, *store_, service_->RecentOf(engine_->info().name, 8));
  service_->Route(backend_);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  stub_ = v1::LlmService::NewStub(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
}

LlmTestServer::~LlmTestServer() {
  engine_->Stop();
  server_->Shutdown();
}

grpc::Status LlmTestServer::Put(const TestFeatures& features, v1::PutFeaturesResponse* response) {
  grpc::ClientContext context;
  v1::PutFeaturesResponse ignored;
  auto writer = stub_->PutFeatures(&context, response ? response : &ignored);
  v1::PutFeaturesRequest part;
  *part.mutable_header() = features.header;
  bool open = writer->Write(part);
  for (const std::string_view bytes : SplitChunks(features.bytes)) {
    if (!open) break;
    part.set_chunk(bytes.data(), bytes.size());
    open = writer->Write(part);
  }
  writer->WritesDone();
  return writer->Finish();
}

v1::GenerateRequest LlmTestServer::Ask(const std::string& text,
                                       const std::vector<v1::FeatureKey>& images) const {
  v1::GenerateRequest request;
  *request.mutable_model() = info().model();
  v1::PromptMessage& message = *request.add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_text(text);
  for (const v1::FeatureKey& key : images) *message.add_images() = key;
  request.mutable_sampling()->set_temperature(0);
  return request;
}

StreamedAnswer Generate(v1::LlmService::Stub& stub, const v1::GenerateRequest& request,
                        std::chrono::milliseconds timeout) {
  StreamedAnswer answer;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  auto reader = stub.Generate(&context, request);
  v1::GenerateResponse response;
  bool has_started = false;
  while (reader->Read(&response)) {
    EXPECT_FALSE(answer.has_finished) << "a message behind the last one";
    if (response.has_started()) {
      EXPECT_FALSE(has_started) << "two `started`";
      has_started = true;
      answer.started = response.started();
    } else if (response.has_delta()) {
      EXPECT_TRUE(has_started);
      const v1::GenerateDelta& delta = response.delta();
      EXPECT_EQ(delta.text_offset(),
                request.continue_from().text_bytes_emitted() + answer.text.size());
      answer.text += delta.text();
      answer.token_ids.insert(answer.token_ids.end(), delta.token_ids().begin(),
                              delta.token_ids().end());
      answer.deltas.push_back(delta);
    } else {
      answer.finished = response.finished();
      answer.has_finished = true;
    }
  }
  answer.status = reader->Finish();
  return answer;
}

}  // namespace llava
