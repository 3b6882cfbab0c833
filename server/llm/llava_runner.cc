#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include <exception>
#include <map>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/checkpoint.h"
#include "model/llava/self_test.h"
#include "model/llava/serving_model.h"
#include "server/device/device.h"
#include "server/llm/kv_blocks.h"
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

const char* ShortName(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return "f32";
    case WeightType::kFloat16:
      return "f16";
    case WeightType::kInt8:
      return "i8";
    case WeightType::kInt4:
      return "i4";
    case WeightType::kAuto:
    case WeightType::kBFloat16:
      break;
  }
  return "bf16";
}

static_assert(KvBlocks::kTokens == kKvBlockTokens);

class LlavaRunner : public ModelRunner {
 public:
  LlavaRunner(const LanguageCheckpoint& checkpoint, at::Device device,
              const ServingOptions& options)
      : model_(checkpoint, device, options) {
    // Throws std::runtime_error if the model does not say what was published.
    if (checkpoint.self_test) CheckSelfTest(model_, *checkpoint.self_test);
  }

  void Begin(uint64_t sequence, std::span<const int32_t> ids,
             std::span<const std::shared_ptr<const StoredFeatures>> features) override {
    std::vector<at::Tensor> tensors;
    for (const auto& stored : features) {
      tensors.push_back(at::from_blob(
          const_cast<char*>(stored->bytes.data()),  // only read
          {stored->rows, stored->width}, [stored](void*) {},
          at::TensorOptions(ScalarTypeOf(stored->type))));
    }
    prompts_.insert_or_assign(sequence,
                              PromptRows(model_, {ids.begin(), ids.end()}, std::move(tensors)));
  }

  void End(uint64_t sequence) override { prompts_.erase(sequence); }

  StepLogits Step(std::span<const Part> parts) override {
    std::vector<at::Tensor> rows;
    std::vector<int32_t> tokens;  // that follow each other, one of each part
    std::vector<StepSequence> sequences;
    std::vector<int64_t> wanted;
    const auto embed = [&] {
      if (!tokens.empty()) rows.push_back(model_.decoder().Embed(tokens));
      tokens.clear();
    };
    int64_t end = 0;
    for (const Part& part : parts) {
      const auto prompt = prompts_.find(part.sequence);
      if (prompt != prompts_.end() && part.first < prompt->second.size()) {
        embed();
        rows.push_back(prompt->second.Slice(part.first, part.rows));
        if (part.first + part.rows == prompt->second.size()) prompts_.erase(prompt);
      } else {
        tokens.push_back(part.token);
      }
      sequences.push_back({part.rows, part.first, part.blocks});
      end += part.rows;
      if (part.sampled) wanted.push_back(end - 1);
    }
    embed();
    const at::Tensor logits =
        model_.decoder().Step(rows.size() == 1 ? rows[0] : at::cat(rows), sequences, wanted);
    return {std::make_shared<at::Tensor>(logits), logits.const_data_ptr<float>(), logits.stride(0),
            model_.num_known_ids()};
  }

  void CopyBlock(int32_t from, int32_t to) override { model_.decoder().CopyBlock(from, to); }
  int64_t num_blocks() const override { return model_.decoder().num_blocks(); }
  uint64_t weight_bytes() const override { return model_.decoder().weight_bytes(); }
  int64_t image_tokens() const override { return model_.num_image_tokens(); }

 private:
  c10::InferenceMode inference_;  // of the worker's thread, as long as the runner lives
  ServingModel model_;
  std::map<uint64_t, PromptRows> prompts_;  // not computed to their ends yet
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
    open.packed = true;
    checkpoint = std::make_shared<LanguageCheckpoint>(OpenLanguage(options.model, open));
  } catch (const std::exception& error) {
    return absl::NotFoundError(error.what());
  }

  const at::Device device = devices->front();
  ServingOptions serving;
  LoadedLanguage loaded;
  LanguageInfo& info = loaded.info;
  try {
    serving.weights = ParseWeightType(options.dtype);
    serving.group = options.group;
    serving.kv = ParseKvType(options.kv_type);
    serving.kv_bytes = options.kv_bytes;
    info.kv_block_bytes = ServingModel::KvBlockBytes(*checkpoint, device, serving);
  } catch (const std::invalid_argument& error) {
    return absl::InvalidArgumentError(error.what());
  }
  const WeightType weights = Resolve(serving.weights, *checkpoint, device);
  const LanguageConfig& config = checkpoint->config;
  info.name = checkpoint->name;
  info.version = checkpoint->version;
  info.digest = checkpoint->digest;
  info.tower_digest = checkpoint->tower_digest;
  info.features = config.features;
  info.feature_rows = checkpoint->tower_patches +
                      (config.features.select_feature == SelectFeature::kClsPatch ? 1 : 0);
  info.feature_width = config.projector.in_width;
  info.max_positions = config.decoder.max_position_embeddings;
  info.tokenizer = checkpoint->tokenizer;
  info.chat_template = checkpoint->chat_template;
  info.device = options.device;
  info.dtype = ToString(weights);
  info.numerics = absl::StrCat(device.is_cpu() ? "cpu-" : "cuda-", ShortName(weights));
  info.workers = static_cast<int>(devices->size());
  uint64_t weight_bytes = 0;  // about
  for (const auto& [name, tensor] : checkpoint->tensors.tensors()) {
    uint64_t bytes = weights == WeightType::kFloat32 ? 4 : 2;
    for (const int64_t side : tensor.shape) bytes *= static_cast<uint64_t>(side);
    weight_bytes += bytes;
  }
  loaded.factory = [checkpoint, devices = *std::move(devices), serving, weight_bytes,
                    threads = options.threads](int worker) -> std::unique_ptr<ModelRunner> {
    const at::Device device = devices.at(static_cast<size_t>(worker));
    ServingOptions own = serving;
    own.threads =
        EnterDeviceThread(device, threads, static_cast<int>(devices.size()), weight_bytes);
    return std::make_unique<LlavaRunner>(*checkpoint, device, own);
  };
  return loaded;
}

}  // namespace llava
