#pragma once

// A language model as a worker of the LLM service holds it: projector and serving decoder.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/nn/projector.h"
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
  // Those that step the decoder on the CPU; null: `threads` new ones. Given, others of the loading
  // thread's priority read and pack.
  std::shared_ptr<ops::cpu::ThreadPool> pool = nullptr;
};

// What kAuto stands for: packed weights as they are stored; on a GPU bfloat16; on the CPU float32,
// or bfloat16 for models of more than a GB in that.
WeightType Resolve(WeightType type, const LanguageCheckpoint& checkpoint, at::Device device);

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

  ServingDecoder& decoder() const { return *decoder_; }
  at::Device device() const { return projector_options_.device(); }
  // Features [P, Dv] of one picture, of any dtype and device -> its rows [N, D], as Step takes
  // them. Throws std::invalid_argument on another shape.
  at::Tensor Project(const at::Tensor& features) const;
  int64_t num_image_tokens() const { return num_image_tokens_; }
  // Ids that may be sampled: [0, this).
  int64_t num_known_ids() const { return num_known_ids_; }
  WeightType weights() const { return weights_; }  // not kAuto

 private:
  WeightType weights_;
  int64_t num_image_tokens_, num_known_ids_;
  int64_t tower_rows_, feature_width_;  // of Z_v of one picture
  at::TensorOptions projector_options_, row_options_;
  std::unique_ptr<Connector> projector_;
  std::unique_ptr<ServingDecoder> decoder_;
};

// The rows of a prompt, computed piece by piece; a picture is projected when its rows are first
// asked for, and forgotten behind them. One thread; the model must outlive it.
class PromptRows {
 public:
  // `ids` with kImageToken for each of `features` [P, Dv]. Throws std::invalid_argument if their
  // numbers differ.
  PromptRows(const ServingModel& model, std::vector<int32_t> ids, std::vector<at::Tensor> features);

  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  // Rows [first, first + count) as Step takes them. Pieces come in order.
  at::Tensor Slice(int64_t first, int64_t count);

 private:
  const ServingModel* model_;
  std::vector<int64_t> rows_;         // a token id, or -1 - (number of a row of all pictures)
  std::vector<at::Tensor> pictures_;  // [P, Dv], then [N, D] from when it is needed
  std::vector<bool> projected_;
};

}  // namespace llava
