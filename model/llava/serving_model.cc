#include "model/llava/serving_model.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <utility>

#include <ATen/ops/cat.h>

#include "model/llava/expand.h"
#ifdef LLAVA_CUDA
#include "model/nn/cuda_llama.h"
#endif
#include "model/nn/packed_llama.h"
#include "model/nn/step_rows.h"
#include "model/nn/torch_serving_decoder.h"

namespace llava {
namespace {

// Models with more in float32 are served in bfloat16 unless something else is asked for.
constexpr uint64_t kMostFloat32 = 1'000'000'000;

constexpr std::array<std::pair<const char*, WeightType>, 6> kWeightTypes = {
    {{"auto", WeightType::kAuto},
     {"float32", WeightType::kFloat32},
     {"float16", WeightType::kFloat16},
     {"bfloat16", WeightType::kBFloat16},
     {"int8", WeightType::kInt8},
     {"int4", WeightType::kInt4}}};
constexpr std::array<std::pair<const char*, KvType>, 4> kKvTypes = {
    {{"auto", KvType::kAuto},
     {"float32", KvType::kFloat},
     {"bfloat16", KvType::kBFloat16},
     {"int8", KvType::kInt8}}};

template <typename Table>
auto Parse(const Table& table, const std::string& word, const char* what) {
  std::string known;
  for (const auto& [name, value] : table) {
    if (word == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw std::invalid_argument("\"" + word + "\" is no type of " + what + ": known are " + known);
}

at::ScalarType ScalarTypeOf(WeightType type) {
  if (type == WeightType::kFloat32) return at::kFloat;
  return type == WeightType::kFloat16 ? at::kHalf : at::kBFloat16;
}

ops::cpu::WeightFormat FormatOf(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return ops::cpu::WeightFormat::kFloat;
    case WeightType::kInt8:
      return ops::cpu::WeightFormat::kInt8;
    case WeightType::kInt4:
      return ops::cpu::WeightFormat::kInt4;
    case WeightType::kAuto:
    case WeightType::kFloat16:
    case WeightType::kBFloat16:
      break;
  }
  return ops::cpu::WeightFormat::kBFloat16;
}

bool IsPacked(WeightType type) { return type == WeightType::kInt8 || type == WeightType::kInt4; }

bool HasCudaKernels(at::Device device) {
#ifdef LLAVA_CUDA
  return device.is_cuda();
#else
  static_cast<void>(device);
  return false;
#endif
}

void CheckTypes(WeightType type, const ServingOptions& options,
                const std::optional<Quantization>& stored, at::Device device) {
  const KvType kv = options.kv;
  if (options.group != 0 && !IsPacked(type)) {
    throw std::invalid_argument(ToString(type) + " weights have no groups, but groups of " +
                                std::to_string(options.group) +
                                " are asked for: serve in int8 or int4, or leave --group out");
  }
  if (device.is_cpu()) {
    if (type == WeightType::kFloat16) {
      throw std::invalid_argument(
          "float16 is for GPUs; on the CPU serve in float32, bfloat16, int8 or int4");
    }
    return;
  }
  if (stored && type == WeightType::kFloat16) {
    throw std::invalid_argument("the checkpoint is packed as " + stored->Describe() +
                                ", of which there is no float16: ask for --dtype " +
                                DtypeWord(*stored) + " or auto");
  }
  if (IsPacked(type) && !HasCudaKernels(device)) {
    throw std::invalid_argument(ToString(type) +
                                " weights are for the CPU and for NVIDIA GPUs; on " + device.str() +
                                " serve in bfloat16 or float16");
  }
  const bool fits = kv == KvType::kAuto || (kv == KvType::kFloat && type == WeightType::kFloat32) ||
                    (kv == KvType::kBFloat16 && (type == WeightType::kBFloat16 || IsPacked(type)));
  if (!fits) {
    const std::string kept = ToString(IsPacked(type) ? WeightType::kBFloat16 : type);
    throw std::invalid_argument("keys and values of " + ToString(type) + " weights on " +
                                device.str() + " are kept in " + kept + "; leave --kv-type out");
  }
}

std::optional<PackOptions> PackOptionsOf(WeightType asked, WeightType type, int64_t group,
                                         bool stored) {
  if (stored && asked == WeightType::kAuto && group == 0) return std::nullopt;  // as it is
  PackOptions options;
  options.format = FormatOf(type);
  options.group = group;
  return options;
}

std::unique_ptr<ServingDecoder> MakeGpuDecoder(const DecoderConfig& config, DecoderWeights weights,
                                               uint64_t kv_bytes) {
#ifdef LLAVA_CUDA
  if (weights.norm.is_cuda() && weights.norm.scalar_type() != at::kHalf) {  // as WhyPlainDecoder
    CudaLlamaOptions options;
    options.kv_bytes = kv_bytes;
    return std::make_unique<CudaLlama>(config, ToCuda(weights), options);
  }
#endif
  // What has no kernels of its own.
  const int64_t block_bytes =
      KvBlockBytes(config, static_cast<int64_t>(weights.norm.element_size()));
  return std::make_unique<TorchServingDecoder>(config, std::move(weights),
                                               static_cast<int64_t>(kv_bytes) / block_bytes);
}

// Of weights that CheckTypes has let through.
std::unique_ptr<ServingDecoder> MakeGpuDecoder(const DecoderConfig& config,
                                               const PackedDecoderWeights& weights,
                                               at::Device device, uint64_t kv_bytes) {
#ifdef LLAVA_CUDA
  CudaLlamaOptions options;
  options.kv_bytes = kv_bytes;
  return std::make_unique<CudaLlama>(config, ToCuda(weights, device), options);
#else
  static_cast<void>(config), static_cast<void>(weights), static_cast<void>(kv_bytes);
  throw std::logic_error("no kernels for " + device.str());
#endif
}

}  // namespace

WeightType ParseWeightType(const std::string& word) { return Parse(kWeightTypes, word, "weights"); }

KvType ParseKvType(const std::string& word) { return Parse(kKvTypes, word, "keys and values"); }

std::string ToString(WeightType type) {
  const auto found = std::find_if(kWeightTypes.begin(), kWeightTypes.end(),
                                  [type](const auto& entry) { return entry.second == type; });
  return found->first;
}

WeightType Resolve(WeightType type, const LanguageCheckpoint& checkpoint, at::Device device) {
  if (type != WeightType::kAuto) return type;
  if (const auto& stored = checkpoint.config.decoder.quantization) {
    switch (ToPackOptions(*stored).format) {
      case ops::cpu::WeightFormat::kInt8:
        return WeightType::kInt8;
      case ops::cpu::WeightFormat::kInt4:
        return WeightType::kInt4;
      case ops::cpu::WeightFormat::kBFloat16:
        return WeightType::kBFloat16;
      case ops::cpu::WeightFormat::kFloat:
        return WeightType::kFloat32;
    }
  }
  if (!device.is_cpu()) return WeightType::kBFloat16;
  const uint64_t bytes = checkpoint.tensors.numel() * sizeof(float);
  return bytes > kMostFloat32 ? WeightType::kBFloat16 : WeightType::kFloat32;
}

std::string WhyPlainDecoder(WeightType type, at::Device device) {
  if (device.is_cpu()) return "";
  if (!HasCudaKernels(device)) return "this build has no kernels for " + device.str();
  return type == WeightType::kFloat16 ? "there are no kernels for float16" : "";
}

ServingModel::ServingModel(const LanguageCheckpoint& checkpoint, at::Device device,
                           const ServingOptions& options)
    : weights_(Resolve(options.weights, checkpoint, device)), device_(device) {
  CheckTypes(weights_, options, checkpoint.config.decoder.quantization, device);
  const LanguageConfig& config = checkpoint.config;
  num_known_ids_ = std::min<int64_t>(config.decoder.vocab_size, checkpoint.tokenizer->vocab_size());
  const at::ScalarType dtype = ScalarTypeOf(weights_);
  pictures_ = std::make_unique<const PictureProjector>(checkpoint, device, dtype);
  const bool stored = config.decoder.quantization.has_value();
  if (device.is_cpu() || IsPacked(weights_) || (stored && HasCudaKernels(device))) {
    const auto packing = options.packing
                             ? options.packing
                             : std::make_shared<ops::cpu::ThreadPool>(std::max(1, options.threads));
    const auto pool = options.pool ? options.pool : packing;
    auto packed =
        PackDecoder(config.decoder, checkpoint.tensors,
                    PackOptionsOf(options.weights, weights_, options.group, stored), *packing);
    if (device.is_cpu()) {
      decoder_ = std::make_unique<PackedLlama>(config.decoder, std::move(packed), pool, options.kv,
                                               options.kv_bytes);
    } else {
      decoder_ = MakeGpuDecoder(config.decoder, packed, device, options.kv_bytes);
    }
  } else {
    auto read =
        ReadDecoderWeights(config.decoder, checkpoint.tensors, device, dtype, /*join=*/true);
    decoder_ = MakeGpuDecoder(config.decoder, std::move(read), options.kv_bytes);
  }
  checkpoint.tensors.Finish();  // nothing that is being checked still is used
  row_options_ = decoder_->Embed(std::array<int32_t, 1>{0}).options();
}

int64_t ServingModel::KvBlockBytes(const LanguageCheckpoint& checkpoint, at::Device device,
                                   const ServingOptions& options) {
  const WeightType type = Resolve(options.weights, checkpoint, device);
  const DecoderConfig& config = checkpoint.config.decoder;
  if (device.is_cpu()) return PackedLlama::BlockBytes(config, FormatOf(type), options.kv);
  return llava::KvBlockBytes(config, static_cast<int64_t>(c10::elementSize(ScalarTypeOf(type))));
}

uint64_t ServingModel::StepBytes(const LanguageCheckpoint& checkpoint, at::Device device,
                                 const ServingOptions& options, int64_t sequences) {
#ifdef LLAVA_CUDA
  const WeightType type = Resolve(options.weights, checkpoint, device);
  if (device.is_cuda() && WhyPlainDecoder(type, device).empty()) {
    return CudaLlama::GraphBytes(checkpoint.config.decoder, sequences, IsPacked(type));
  }
#else
  static_cast<void>(checkpoint), static_cast<void>(device);
  static_cast<void>(options), static_cast<void>(sequences);
#endif
  return 0;
}

at::Tensor ServingModel::Project(const at::Tensor& features, Resolution size) const {
  // Copied from pinned memory, so that nothing waits; numbers are converted where they arrive.
  const bool upload = features.is_cpu() && device_.is_cuda();
  const at::Tensor there =
      (upload ? features.pin_memory() : features).to(device_, /*non_blocking=*/true);
  return pictures_->Forward({&there, 1}, {&size, 1})[0].to(row_options_);
}

PromptRows::PromptRows(const ServingModel& model, std::vector<int32_t> ids,
                       std::vector<at::Tensor> features, std::vector<Resolution> sizes)
    : model_(&model),
      pictures_(std::move(features)),
      sizes_(std::move(sizes)),
      projected_(pictures_.size()) {
  CheckMarks(ids, pictures_.size(), "features of ");
  const PictureShape& shape = model.picture_shape();
  if (shape.is_fixed()) sizes_.resize(pictures_.size());
  CheckMarks(ids, sizes_.size(), "sizes of ");
  int64_t picture_rows = 0;
  for (const int32_t id : ids) {
    if (id < 0 && id != kImageToken) {
      throw std::invalid_argument("the prompt has the token id " + std::to_string(id) +
                                  ", which is none");
    }
    if (id != kImageToken) {
      rows_.push_back(id);
      continue;
    }
    const int64_t tokens = shape.NumTokens(sizes_[ends_.size()]);
    for (int64_t i = 0; i < tokens; ++i) rows_.push_back(-1 - picture_rows++);
    ends_.push_back(picture_rows);
  }
}

at::Tensor PromptRows::Slice(int64_t first, int64_t count) {
  std::vector<at::Tensor> parts;
  const int64_t end = first + count;
  for (int64_t row = first; row < end;) {
    int64_t next = row;
    if (rows_[row] >= 0) {
      std::vector<int32_t> ids;
      for (; next < end && rows_[next] >= 0; ++next)
        ids.push_back(static_cast<int32_t>(rows_[next]));
      parts.push_back(model_->decoder().Embed(ids));
    } else {
      const int64_t number = -1 - rows_[row];
      const auto picture =
          static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), number) - ends_.begin());
      const int64_t begin = number - (picture == 0 ? 0 : ends_[picture - 1]);
      next = std::min(end, row + ends_[picture] - number);
      if (!projected_[picture]) {
        pictures_[picture] = model_->Project(pictures_[picture], sizes_[picture]);
        projected_[picture] = true;
      }
      parts.push_back(pictures_[picture].narrow(0, begin, next - row));
      if (row + ends_[picture] - number == next) pictures_[picture] = at::Tensor();
    }
    row = next;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

}  // namespace llava
