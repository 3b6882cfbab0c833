#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <exception>
#include <map>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/checkpoint.h"
#include "model/llava/llava.h"
#include "model/llava/self_test.h"
#include "model/nn/kv_cache.h"
#include "server/device/device.h"
#include "server/llm/model_runner.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

at::ScalarType ScalarTypeOf(FeatureType type) {
  switch (type) {
    case FeatureType::kFloat32:
      return at::kFloat;
    case FeatureType::kFloat16:
      return at::kHalf;
    case FeatureType::kBFloat16:
      return at::kBFloat16;
  }
  return at::kFloat;
}

class LlavaRunner : public ModelRunner {
 public:
  LlavaRunner(const LanguageCheckpoint& checkpoint, at::Device device, at::ScalarType dtype)
      : model_(checkpoint, device, dtype) {}

  // Throws std::runtime_error if the model does not say what was published.
  void CheckSelfTest(const SelfTest& test) const { llava::CheckSelfTest(model_, test); }

  int64_t Begin(uint64_t sequence, std::span<const int32_t> ids,
                std::span<const std::shared_ptr<const StoredFeatures>> features,
                int64_t longest_tokens) override {
    std::vector<at::Tensor> tensors;
    for (const auto& stored : features) {
      // Only read, and alive until Embed returns.
      tensors.push_back(at::from_blob(const_cast<char*>(stored->bytes.data()),
                                      {stored->rows, stored->width},
                                      at::TensorOptions(ScalarTypeOf(stored->type))));
    }
    const LlamaDecoder& decoder = model_.decoder();
    KvCache cache(decoder.config(), decoder.device(), decoder.dtype());
    cache.Reserve(longest_tokens);
    at::Tensor prompt = model_.Embed(ids, tensors);
    const int64_t length = prompt.size(0);
    sequences_.insert_or_assign(sequence, State{std::move(cache), std::move(prompt), 0});
    return length;
  }

  void End(uint64_t sequence) override { sequences_.erase(sequence); }

  std::vector<std::vector<float>> Step(std::span<const Part> parts) override {
    std::vector<at::Tensor> rows;
    std::vector<Segment> segments;
    std::vector<int64_t> wanted;  // rows whose logits are sampled
    int64_t end = 0;
    for (const Part& part : parts) {
      State& state = sequences_.at(part.sequence);
      if (part.tokens > 0) {
        rows.push_back(state.prompt.narrow(0, state.computed, part.tokens));
      } else {
        rows.push_back(model_.decoder().Embed(at::tensor({int64_t{part.token}}, at::kLong)));
      }
      segments.push_back({.tokens = rows.back().size(0), .cache = &state.cache});
      end += segments.back().tokens;
      if (part.sampled) wanted.push_back(end - 1);
    }
    const at::Tensor hidden =
        model_.decoder().Forward(rows.size() == 1 ? rows[0] : at::cat(rows), segments);
    for (const Part& part : parts) {
      State& state = sequences_.at(part.sequence);
      state.computed += part.tokens;
      if (part.tokens > 0 && state.computed == state.prompt.size(0)) state.prompt = at::Tensor();
    }
    return LogitsOf(hidden, wanted);
  }

  int64_t kv_bytes() const override {
    int64_t bytes = 0;
    for (const auto& [id, state] : sequences_) bytes += state.cache.bytes();
    return bytes;
  }

  int64_t image_tokens() const override { return model_.num_image_tokens(); }

 private:
  struct State {
    KvCache cache;
    at::Tensor prompt;     // [T, D], until it is computed
    int64_t computed = 0;  // rows of it
  };

  std::vector<std::vector<float>> LogitsOf(const at::Tensor& hidden,
                                           const std::vector<int64_t>& wanted) const {
    std::vector<std::vector<float>> result;
    if (wanted.empty()) return result;
    const at::Tensor index = at::tensor(wanted, at::kLong).to(hidden.device());
    const at::Tensor logits =
        model_.decoder().Logits(hidden.index_select(0, index)).cpu().contiguous();
    for (size_t i = 0; i < wanted.size(); ++i) {
      const float* row = logits.const_data_ptr<float>() + i * logits.size(1);
      result.emplace_back(row, row + model_.num_known_ids());
    }
    return result;
  }

  c10::InferenceMode inference_;  // of the worker's thread, as long as the runner lives
  Llava model_;
  std::map<uint64_t, State> sequences_;
};

}  // namespace

absl::StatusOr<LoadedLanguage> OpenLanguageWorkers(const LanguageOptions& options) {
  auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
  for (const at::Device device : *devices) {
    if (auto status = CheckDevice(device); !status.ok()) return status;
  }
  std::shared_ptr<const LanguageCheckpoint> checkpoint;
  try {
    OpenOptions open;
    open.tower = options.tower;
    open.chat_template = options.chat_template;
    checkpoint = std::make_shared<LanguageCheckpoint>(OpenLanguage(options.model, open));
  } catch (const std::exception& error) {
    return absl::NotFoundError(error.what());
  }

  const at::Device device = devices->front();
  const at::ScalarType dtype = ParseDtype(options.dtype, device);
  const LanguageConfig& config = checkpoint->config;
  LoadedLanguage loaded;
  LanguageInfo& info = loaded.info;
  info.name = checkpoint->name;
  info.version = checkpoint->version;
  info.digest = checkpoint->digest;
  info.tower_digest = checkpoint->tower_digest;
  info.features = config.features;
  info.feature_rows = checkpoint->tower_patches +
                      (config.features.select_feature == SelectFeature::kClsPatch ? 1 : 0);
  info.feature_width = config.projector.in_width;
  info.max_positions = config.decoder.max_position_embeddings;
  info.kv_bytes_per_token = KvCache::BytesPerToken(config.decoder, device, dtype);
  info.tokenizer = checkpoint->tokenizer;
  info.chat_template = checkpoint->chat_template;
  info.device = options.device;
  info.dtype = ArithmeticName(dtype);
  info.numerics = NumericsName(device, dtype);
  info.workers = static_cast<int>(devices->size());
  for (const auto& [name, tensor] : checkpoint->tensors.tensors()) {
    uint64_t bytes = c10::elementSize(dtype) * devices->size();
    for (const int64_t side : tensor.shape) bytes *= static_cast<uint64_t>(side);
    info.weight_bytes += bytes;
  }
  const uint64_t weight_bytes = info.weight_bytes / devices->size();
  loaded.factory = [checkpoint, devices = *std::move(devices), dtype, weight_bytes,
                    threads = options.threads](int worker) -> std::unique_ptr<ModelRunner> {
    const at::Device device = devices.at(static_cast<size_t>(worker));
    EnterDeviceThread(device, threads, static_cast<int>(devices.size()), weight_bytes);
    auto runner = std::make_unique<LlavaRunner>(*checkpoint, device, dtype);
    if (checkpoint->self_test) runner->CheckSelfTest(*checkpoint->self_test);
    return runner;
  };
  return loaded;
}

}  // namespace llava
