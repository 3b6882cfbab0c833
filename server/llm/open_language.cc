// From a folder to the workers of a language model.

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/opened_files.h"
#include "model/checkpoint/tensor_file.h"
#include "model/config/picture_shape.h"
#include "model/llava/serving_model.h"
#include "model/nn/step_rows.h"
#include "model/ops/cpu/thread_pool.h"
#include "server/device/background_thread.h"
#include "server/device/device.h"
#include "server/device/load_failure.h"
#include "server/llm/llava_runner.h"
#include "server/llm/model_runner.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;

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

constexpr char kStopped[] = "the loading was stopped";

// Bytes of a packed weight, its share of scales and of weights kept apart included.
constexpr double kInt8Bytes = 1.05, kInt4Bytes = 0.6;

// Called for the bytes of each tensor that is read: tells the share, holds the rate (0: there is
// none; who checks versions of a repository holds it), stops.
class ReadMeter {
 public:
  ReadMeter(LoadWatch& watch, uint64_t total, double bytes_per_second)
      : watch_(watch), total_(static_cast<double>(total)), rate_(bytes_per_second) {}

  void operator()(uint64_t bytes) {
    read_ += static_cast<double>(bytes);
    watch_.share = std::min(kMost, read_ / total_);
    const auto due = begin_ + std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(rate_ > 0 ? read_ / rate_ : 0));
    do {
      if (watch_.stop) throw OpenStopped(kStopped);
      std::this_thread::sleep_until(std::min(due, Clock::now() + kLookAgain));
    } while (Clock::now() < due);
  }

 private:
  static constexpr double kMost = 0.99;  // the last tensor is not packed yet when it is read
  static constexpr std::chrono::milliseconds kLookAgain{20};

  LoadWatch& watch_;
  const double total_, rate_;
  const Clock::time_point begin_ = Clock::now();
  double read_ = 0;
};

// Tensors that are counted as they are read.
class WatchedTensors : public TensorFile {
 public:
  WatchedTensors(TensorSource source, ReadMeter meter)
      : source_(std::move(source)), meter_(std::move(meter)) {}
  const std::map<std::string, TensorInfo>& tensors() const override { return source_.tensors(); }
  at::Tensor Get(const std::string& name) const override {
    at::Tensor tensor = source_.Get(name);
    meter_(tensor.nbytes());
    return tensor;
  }
  void Release(const std::string& name) const override { source_.Release(name); }
  void Finish() const override { source_.Finish(); }

 private:
  const TensorSource source_;
  mutable ReadMeter meter_;  // who loads is one thread
};

TensorSource Watched(const TensorSource& source, ReadMeter meter) {
  const auto file = std::make_shared<const WatchedTensors>(source, std::move(meter));
  TensorSource watched;
  for (const auto& [name, info] : source.tensors()) watched.Add(name, file, name);
  return watched;
}

LanguageCheckpoint Open(const LanguageOptions& options, const LoadPace& pace, bool verify,
                        const std::shared_ptr<std::atomic<double>>& checked = nullptr) {
  OpenOptions open;
  open.tower = options.tower;
  open.chat_template = options.chat_template;
  open.packed = true;
  open.verify = verify;
  open.in_memory = verify;  // read once: what is found right is packed while more is read
  const WeightType weights = ParseWeightType(options.dtype);
  open.side_by_side = weights != WeightType::kInt8 && weights != WeightType::kInt4;
  if (pace.in_background) {
    // Threads that stand back hold a processor for their slice all the same: half are left free.
    open.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 2);
  }
  open.stop = pace.stop;
  if (checked) open.progress = [checked](double share) { *checked = share; };
  open.bytes_per_second = pace.bytes_per_second;
  if (pace.stop && pace.stop()) throw OpenStopped(kStopped);
  LanguageCheckpoint checkpoint = OpenLanguage(options.model, open);
  if (verify && checkpoint.template_assumed) {  // not where a model is looked at only
    LogInfo("chat template assumed; --chat-template names another",
            {{"model", checkpoint.name}, {"template", checkpoint.chat_template->name()}});
  }
  return checkpoint;
}

ServingOptions ServingOptionsOf(const LanguageOptions& options) {
  ServingOptions serving;
  serving.weights = ParseWeightType(options.dtype);
  serving.group = options.group;
  serving.kv = ParseKvType(options.kv_type);
  serving.kv_bytes = options.kv_bytes;
  return serving;
}

LanguageInfo InfoOf(const LanguageCheckpoint& checkpoint, const LanguageOptions& options,
                    const std::vector<at::Device>& devices, WeightType weights) {
  const LanguageConfig& config = checkpoint.config;
  LanguageInfo info;
  info.name = checkpoint.name;
  info.version = checkpoint.version;
  info.digest = checkpoint.digest;
  info.tower_digest = checkpoint.tower_digest;
  info.features = config.features;
  info.pictures = PictureShape(config.features, checkpoint.tower_patches);
  info.feature_width = config.projector.in_width;
  info.max_positions = config.decoder.max_position_embeddings;
  info.tokenizer = checkpoint.tokenizer;
  info.chat_template = checkpoint.chat_template;
  info.device = options.device;
  info.dtype = ToString(weights);
  info.numerics = absl::StrCat(devices.front().is_cpu() ? "cpu-" : "cuda-", ShortName(weights));
  info.workers = static_cast<int>(devices.size());
  return info;
}

// About what the weights take in memory.
uint64_t WeightBytes(const LanguageCheckpoint& checkpoint, WeightType weights) {
  double bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    const auto elements = static_cast<double>(tensor.numel());
    const bool matrix = tensor.shape.size() == 2;
    const bool embedding = name == "model.embed_tokens.weight";
    const bool head = name == "lm_head.weight";
    double each = weights == WeightType::kFloat32 || !matrix ? 4 : 2;
    if (tensor.dtype == at::kByte) {
      each = 1;  // packed as it is stored
    } else if (matrix && !embedding && weights == WeightType::kInt8) {
      each = kInt8Bytes;
    } else if (matrix && !embedding && weights == WeightType::kInt4) {
      each = head ? kInt8Bytes : kInt4Bytes;
    }
    bytes += elements * each;
    if (embedding && checkpoint.config.decoder.tie_word_embeddings) bytes += elements * each;
  }
  return static_cast<uint64_t>(bytes);
}

// What a step keeps between its operations, in float32.
uint64_t ActivationBytes(const DecoderConfig& config, int64_t rows, int64_t sampled) {
  const int64_t attention = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
  const int64_t row = 3 * config.hidden_size + attention + 3 * config.intermediate_size;
  return static_cast<uint64_t>(4 * (rows * row + sampled * config.vocab_size));
}

// What the largest picture needs while it is projected, in float32.
uint64_t PictureBytes(const LanguageCheckpoint& checkpoint) {
  const LanguageConfig& config = checkpoint.config;
  const int64_t rows = PictureShape(config.features, checkpoint.tower_patches).most_rows();
  return static_cast<uint64_t>(4 * rows *
                               (config.projector.in_width + 3 * config.projector.out_width));
}

}  // namespace

absl::StatusOr<LoadedLanguage> OpenLanguageWorkers(const LanguageOptions& options,
                                                   const LoadPace& pace) {
  auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
  for (const at::Device device : *devices) {
    if (auto status = CheckDevice(device); !status.ok()) return status;
  }
  const bool in_background = pace.in_background;
  std::shared_ptr<const LanguageCheckpoint> checkpoint;
  LoadedLanguage loaded;
  ServingOptions serving;
  uint64_t weight_bytes = 0;
  const OpenedFiles files(options.model);
  try {
    const auto checked = std::make_shared<std::atomic<double>>(0);
    loaded.checked = checked;
    const auto open = [&] {
      checkpoint =
          std::make_shared<LanguageCheckpoint>(Open(options, pace, /*verify=*/true, checked));
    };
    if (in_background) {
      RunInBackground(open);
    } else {
      open();
    }
    serving = ServingOptionsOf(options);
    const at::Device device = devices->front();
    const WeightType weights = Resolve(serving.weights, *checkpoint, device);
    loaded.info = InfoOf(*checkpoint, options, *devices, weights);
    loaded.info.kv_block_bytes = ServingModel::KvBlockBytes(*checkpoint, device, serving);
    weight_bytes = WeightBytes(*checkpoint, weights);
    if (const std::string why = WhyPlainDecoder(weights, device); !why.empty()) {
      LogWarning("answers will be slow: the decoder runs by LibTorch's operations alone",
                 {{"why", why}, {"dtype", ToString(weights)}, {"device", options.device}});
    }
  } catch (...) {
    return WhyNotOpened(options.model, std::current_exception());
  }
  loaded.factory = [checkpoint, files, devices = *std::move(devices), serving, weight_bytes,
                    in_background, rate = checkpoint->in_repository ? 0 : pace.bytes_per_second,
                    path = options.model, threads = options.threads](
                       int index, LoadWatch& watch) -> std::unique_ptr<ModelRunner> {
    const at::Device device = devices.at(static_cast<size_t>(index));
    RequireDevice(device);
    const auto enter = [&] {
      return EnterDeviceThread(device, threads, static_cast<int>(devices.size()), weight_bytes);
    };
    ServingOptions own = serving;
    own.threads = enter();
    LanguageCheckpoint source = *checkpoint;
    source.tensors = Watched(source.tensors, ReadMeter(watch, source.tensors.bytes(), rate));
    std::unique_ptr<ServingModel> model;
    const auto read = [&] {
      const c10::InferenceMode inference;
      try {
        files.Check();
        model = std::make_unique<ServingModel>(source, device, own);
      } catch (...) {
        GiveBackMemory(device);  // of what was read so far
        throw LoadFailure(WhyNotOpened(path, std::current_exception()));
      }
    };
    if (in_background && device.is_cpu()) {
      // The threads that will serve are of ordinary priority, those that pack are not.
      own.pool = std::make_shared<ops::cpu::ThreadPool>(own.threads);
      RunInBackground([&] {
        enter();
        read();
      });
    } else {
      // What is on a device is its own thread's: that one reads, and others pack for it.
      if (in_background) {
        RunInBackground([&] { own.packing = std::make_shared<ops::cpu::ThreadPool>(own.threads); });
      }
      read();
    }
    // What the reading left in memory; the files stay mapped, for a worker that begins anew.
    for (const auto& [name, info] : checkpoint->tensors.tensors()) {
      checkpoint->tensors.Release(name);
    }
    watch.share = 1;
    return MakeLlavaRunner(std::move(model), checkpoint->self_test);
  };
  return loaded;
}

absl::StatusOr<WorkerSize> EstimateWorker(const LanguageOptions& options, int64_t step_rows,
                                          int64_t sampled) {
  const auto devices = ParseDevices(options.device);
  if (!devices.ok()) return devices.status();
  try {
    const LanguageCheckpoint checkpoint = Open(options, {}, /*verify=*/false);
    const ServingOptions serving = ServingOptionsOf(options);
    const WeightType weights = Resolve(serving.weights, checkpoint, devices->front());
    const DecoderConfig& decoder = checkpoint.config.decoder;
    const int64_t block = ServingModel::KvBlockBytes(checkpoint, devices->front(), serving);
    const int64_t blocks = BlocksOf(decoder.max_position_embeddings);
    return WorkerSize{
        .fixed = WeightBytes(checkpoint, weights) + ActivationBytes(decoder, step_rows, sampled) +
                 PictureBytes(checkpoint) +
                 ServingModel::StepBytes(checkpoint, devices->front(), serving, sampled),
        .kv_sequence = static_cast<uint64_t>(block * blocks)};
  } catch (...) {
    return WhyNotOpened(options.model, std::current_exception());
  }
}

}  // namespace llava
