#pragma once

// LLaMA decoder over a ragged batch: tokens of all sequences stand behind each other, so one
// forward call serves prefill, decode and training, and no padding is computed.

#include <initializer_list>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/nn/decoder_weights.h"
#include "model/nn/kv_cache.h"
#include "model/nn/low_rank.h"
#include "model/nn/parameters.h"
#include "model/nn/ragged_attention.h"
#include "model/nn/segment.h"
#include "model/ops/ops.h"

namespace llava {

// Forward is const; the parameters change only through VisitParameters.
class LlamaDecoder {
 public:
  // Throws std::runtime_error for tensors that are missing, misshapen or packed (packed_weights.h).
  LlamaDecoder(const DecoderConfig& config, const TensorSource& tensors, at::Device device,
               at::ScalarType dtype);

  // ids [T] int64 -> [T, D].
  at::Tensor Embed(const at::Tensor& ids) const;
  // embeddings [T, D], T = sum of the segments' tokens -> final-norm hidden states [T, D].
  // Positions go on where each segment's cache ends. `hidden_states`: if given, receives the input
  // of every layer and the result (L + 1 tensors). Throws std::invalid_argument if the segments do
  // not add up to T or a sequence grows beyond max_position_embeddings; the caches are then
  // unchanged.
  at::Tensor Forward(const at::Tensor& embeddings, std::span<const Segment> segments,
                     std::vector<at::Tensor>* hidden_states = nullptr) const;
  // hidden [T, D] -> logits [T, V] in float32.
  at::Tensor Logits(const at::Tensor& hidden) const;

  // Keeps only the input of each layer for the backward pass, which computes the layer anew: less
  // memory for a third more time. For training without caches.
  void set_gradient_checkpointing(bool on) { gradient_checkpointing_ = on; }

  // From now on adapters of low rank stand beside its matrices, read from `tensors`: for training
  // them instead of the matrices. Throws as LowRankAdapters.
  void Adapt(const LowRankOptions& options, const TensorSource& tensors);
  // Throws std::bad_optional_access without Adapt.
  LowRankAdapters& adapters() { return adapters_.value(); }

  // With the adapters, if there are any.
  void VisitParameters(const ParameterVisitor& visit);
  const DecoderConfig& config() const { return config_; }
  at::Device device() const { return device_; }
  at::ScalarType dtype() const { return dtype_; }

 private:
  // Cosines and sines of all rows of a batch of `rows`.
  ops::RopeTable RopeOf(const RaggedAttention& attention, int64_t rows) const;
  // Output of layer `index`. x [T, D] -> [T, D].
  at::Tensor Step(int64_t index, const at::Tensor& x, const RaggedAttention& attention,
                  const ops::RopeTable& rope) const;
  // Self-attention of layer `index`, from its norm to its output projection. x [T, D] -> [T, D].
  at::Tensor Attend(int64_t index, const at::Tensor& x, const RaggedAttention& attention,
                    const ops::RopeTable& rope) const;

  // x [T, in] times a matrix of layer `index` and what its adapter adds.
  at::Tensor Product(int64_t index, LowRankAdapters::Matrix matrix, const at::Tensor& x,
                     const at::Tensor& weight) const;
  // The normed x [T, D] times several.
  std::vector<at::Tensor> NormedProducts(
      int64_t index, const at::Tensor& x, const at::Tensor& norm,
      std::initializer_list<std::pair<LowRankAdapters::Matrix, const at::Tensor*>> matrices) const;

  DecoderConfig config_;
  at::Device device_;
  at::ScalarType dtype_;
  bool gradient_checkpointing_ = false;
  DecoderWeights weights_;
  std::optional<LowRankAdapters> adapters_;
  ops::RopeTable rope_;  // of all positions: [max_position_embeddings, Dh/2] each
};

}  // namespace llava
