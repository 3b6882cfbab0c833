#pragma once

// The plain ServingDecoder: LibTorch's operations alone, on any device and in any of its dtypes.
// What the decoders with kernels of their own must agree with.

#include <vector>

#include "model/nn/decoder_weights.h"
#include "model/nn/serving_decoder.h"
#include "model/ops/ops.h"

namespace llava {

// One thread. Keys and values are kept in the dtype of the weights.
class TorchServingDecoder : public ServingDecoder {
 public:
  TorchServingDecoder(const DecoderConfig& config, DecoderWeights weights, int64_t num_blocks);

  at::Tensor Embed(std::span<const int32_t> ids) const override;
  at::Tensor Step(const at::Tensor& rows, std::span<const StepSequence> sequences,
                  std::span<const int64_t> wanted) override;
  void CopyBlock(int32_t from, int32_t to) override;

  int64_t num_blocks() const override { return num_blocks_; }
  uint64_t weight_bytes() const override { return weights_.bytes(); }
  const DecoderConfig& config() const override { return config_; }

 private:
  DecoderConfig config_;
  DecoderWeights weights_;
  int64_t num_blocks_;
  at::Tensor kv_;        // [L, 2, blocks, tokens of a block, Hkv, Dh]
  ops::RopeTable rope_;  // of all positions
};

}  // namespace llava
