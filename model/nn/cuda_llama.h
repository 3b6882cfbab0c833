#pragma once

// The ServingDecoder for CUDA: LibTorch's matrix products and prefill attention, own kernels for
// everything between them, and steps of single tokens recorded as CUDA graphs.

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "model/nn/decoder_weights.h"
#include "model/nn/serving_decoder.h"
#include "model/ops/cuda/runtime.h"
#include "model/ops/ops.h"

namespace llava {

struct CudaLlamaOptions {
  uint64_t kv_bytes = uint64_t{1} << 30;  // for blocks of keys and values
  bool graphs = true;                     // of steps in which every sequence has one token
  // Most rows that the own product with matrices read once takes; 0: cuBLAS does all.
  int64_t own_product_rows = 2;
};

// One thread. Attention and everything else of this file gives a row the same bits in any batch;
// cuBLAS chooses its way by the number of rows and may round differently.
class CudaLlama : public ServingDecoder {
 public:
  // Takes the weights over: those of q, k and v, and of gate and up, are put together. All of one
  // device, float32 or bfloat16. Throws std::invalid_argument if the budget holds no block or there
  // is no kernel for the dtype or the heads.
  CudaLlama(const DecoderConfig& config, DecoderWeights weights, const CudaLlamaOptions& options);
  ~CudaLlama() override;

  at::Tensor Embed(std::span<const int32_t> ids) const override;
  at::Tensor Step(const at::Tensor& rows, std::span<const StepSequence> sequences,
                  std::span<const int64_t> wanted) override;
  void CopyBlock(int32_t from, int32_t to) override;

  int64_t num_blocks() const override { return num_blocks_; }
  uint64_t weight_bytes() const override { return weight_bytes_; }
  const DecoderConfig& config() const override { return config_; }

 private:
  struct Layer {
    at::Tensor input_norm, post_attention_norm;  // [D]
    at::Tensor qkv, o;                           // [(H + 2 Hkv) Dh, D], [D, H Dh]
    at::Tensor gate_up, down;                    // [2 F, D], [D, F]
    at::Tensor k_cache, v_cache;                 // [blocks + 1, tokens of a block, Hkv, Dh]
  };
  struct Batch;
  struct DecodeGraph;

  at::Tensor Forward(const at::Tensor& rows, const Batch& batch) const;
  void Attend(const Layer& layer, const at::Tensor& qkv, const Batch& batch,
              const at::Tensor& out) const;
  void Prefill(const Layer& layer, const at::Tensor& qkv, const Batch& batch,
               const at::Tensor& out) const;
  void AddNorm(const at::Tensor& residual, const at::Tensor& delta, const at::Tensor& weight,
               const at::Tensor& out) const;
  at::Tensor Multiply(const at::Tensor& x, const at::Tensor& weight) const;
  // SwiGlu of the product with gate_up, into `out` [T, F].
  void MultiplyGated(const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& out) const;
  bool MultipliesItself(const at::Tensor& x) const;
  // Logits [T, V] of a step whose sequences have one token each, on the device.
  at::Tensor Decode(const at::Tensor& rows, std::span<const StepSequence> sequences,
                    at::ArrayRef<int32_t> positions, at::ArrayRef<int32_t> slots);
  DecodeGraph& GraphFor(int64_t sequences, int64_t splits);
  // On the device, without waiting.
  at::Tensor Upload(at::ArrayRef<int32_t> values) const;

  DecoderConfig config_;
  CudaLlamaOptions options_;
  at::Device device_;
  cuda::Element element_;
  int64_t num_blocks_;
  uint64_t weight_bytes_;
  at::Tensor embed_tokens_, norm_, lm_head_;
  std::vector<Layer> layers_;
  at::Tensor kv_;        // [L, 2, blocks + 1, tokens of a block, Hkv, Dh]; the last is a spare
  ops::RopeTable rope_;  // of all positions
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<DecodeGraph>> graphs_;
};

}  // namespace llava
