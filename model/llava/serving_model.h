#pragma once

// A language model as a worker of the LLM service holds it: projector and serving decoder.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/picture_shape.h"
#include "model/llava/picture_projector.h"
#include "model/nn/serving_decoder.h"
#include "model/ops/cpu/thread_pool.h"

namespace llava {

// In what the weights of the decoder are kept and multiplied.
enum class WeightType : uint8_t { kAuto, kFloat32, kFloat16, kBFloat16, kInt8, kInt4 };

// Known words: auto, float32, float16, bfloat16, int8, int4. Throws std::invalid_argument.
WeightType ParseWeightType(const std::string& word);
std::string ToString(WeightType type);

// Known words: auto, float32, bfloat16, int8. Throws std::invalid_argument.
KvType ParseKvType(const std::string& word);

struct ServingOptions {
  WeightType weights = WeightType::kAuto;
  // Weights with a common scale, of int8 and int4: 32, 64 or 128; 0: as stored, or what suits.
  int64_t group = 0;
  KvType kv = KvType::kAuto;
  uint64_t kv_bytes = uint64_t{4} << 30;
  int threads = 1;  // of the CPU
  // Those that step the decoder on the CPU; null: those that pack.
  std::shared_ptr<ops::cpu::ThreadPool> pool = nullptr;
  // Those that pack its weights; null: `threads` new ones, of the loading thread's priority.
  std::shared_ptr<ops::cpu::ThreadPool> packing = nullptr;
};

// What kAuto stands for: packed weights as they are stored; on a GPU bfloat16; on the CPU float32,
// or bfloat16 for models of more than a GB in that.
WeightType Resolve(WeightType type, const LanguageCheckpoint& checkpoint, at::Device device);

// Why weights of this type (not kAuto) are stepped by the plain decoder of LibTorch operations on
// this device, several times as slow as kernels of our own; empty: there are such kernels.
std::string WhyPlainDecoder(WeightType type, at::Device device);

// One thread.
class ServingModel {
 public:
  // Throws std::invalid_argument if the device has no such weights, keys or values;
  // std::runtime_error if the checkpoint's bytes, which may be checked meanwhile
  // (OpenOptions::in_memory), are not right.
  ServingModel(const LanguageCheckpoint& checkpoint, at::Device device,
               const ServingOptions& options);

  // Bytes of keys and values of kKvBlockTokens tokens for a model opened so.
  static int64_t KvBlockBytes(const LanguageCheckpoint& checkpoint, at::Device device,
                              const ServingOptions& options);

  // Bytes that a model opened so keeps for its steps of up to `sequences` sequences, beyond what
  // any step needs while it runs.
  static uint64_t StepBytes(const LanguageCheckpoint& checkpoint, at::Device device,
                            const ServingOptions& options, int64_t sequences);

  ServingDecoder& decoder() const { return *decoder_; }
  at::Device device() const { return device_; }
  // Features of one picture of `size` pixels, [picture_shape().NumRows(size), Dv] of any dtype and
  // device -> its rows [N, D], as Step takes them. Throws std::invalid_argument on another shape.
  at::Tensor Project(const at::Tensor& features, Resolution size) const;
  const PictureShape& picture_shape() const { return pictures_->shape(); }
  // Ids that may be sampled: [0, this).
  int64_t num_known_ids() const { return num_known_ids_; }
  WeightType weights() const { return weights_; }  // not kAuto

 private:
  WeightType weights_;
  int64_t num_known_ids_;
  at::Device device_;
  at::TensorOptions row_options_;
  std::unique_ptr<const PictureProjector> pictures_;
  std::unique_ptr<ServingDecoder> decoder_;
};

// The rows of a prompt, computed piece by piece; a picture is projected when its rows are first
// asked for, and forgotten behind them. One thread; the model must outlive it.
class PromptRows {
 public:
  // `ids` with kImageToken for each of `features`, of pictures of `sizes` (may be none where
  // picture_shape().is_fixed()). Throws std::invalid_argument if their numbers differ.
  PromptRows(const ServingModel& model, std::vector<int32_t> ids, std::vector<at::Tensor> features,
             std::vector<Resolution> sizes = {});

  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  // Rows [first, first + count) as Step takes them. Pieces come in order.
  at::Tensor Slice(int64_t first, int64_t count);

 private:
  const ServingModel* model_;
  std::vector<int64_t> rows_;         // a token id, or -1 - (number of a row of all pictures)
  std::vector<at::Tensor> pictures_;  // features, then [N, D] from when it is needed
  std::vector<Resolution> sizes_;
  std::vector<int64_t> ends_;  // number of the row behind each picture
  std::vector<bool> projected_;
};

}  // namespace llava
