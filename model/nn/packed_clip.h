#pragma once

// The tower of a CPU in 16 bits or less: packed weights, own kernels. ClipTower is what it must
// agree with.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/ops/cpu/multiplier.h"
#include "model/ops/cpu/packed_matrix.h"
#include "model/ops/cpu/thread_pool.h"

namespace llava {

// Raised by every change after which features of a picture may come out with other bits: whoever
// keeps features tells by it which they are.
inline constexpr int kPackedClipRevision = 2;

// The tower's weights in the order in which kernels read them. Const once made: towers on any
// number of threads may share them.
class PackedClipWeights {
 public:
  // `format`: kBFloat16, kInt8 or kFloat; the patch embedding is never coarser than bfloat16. Packs
  // with the threads of `pool`. Throws std::runtime_error naming all tensors that are missing or
  // misshapen, std::invalid_argument for another format.
  PackedClipWeights(const VisionConfig& config, const TensorSource& tensors,
                    ops::cpu::WeightFormat format, ops::cpu::ThreadPool& pool);

  const VisionConfig& config() const { return config_; }
  ops::cpu::WeightFormat format() const { return format_; }
  uint64_t bytes() const;

 private:
  friend class PackedClipTower;

  struct Linear {
    ops::cpu::PackedMatrix weight;
    std::vector<float> bias;  // empty: none
  };
  struct Norm {
    std::vector<float> weight, bias;
  };
  struct Block {
    Norm norm1, norm2;
    Linear qkv, out, fc1, fc2;
  };

  VisionConfig config_;
  ops::cpu::WeightFormat format_;
  std::optional<ops::cpu::PackedMatrix> patch_embedding_;  // [Dv, 3 * patch * patch]
  std::vector<float> position_embedding_;  // [P + 1, Dv], with the class embedding in its first row
  at::Tensor pre_norm_weight_, pre_norm_bias_;
  std::vector<Block> blocks_;
};

// Residuals and norms are float32; products and attention take bfloat16 (kFloat: float32), beside
// int8 weights products take 8 bits by row and group. Features of a picture are the same to the bit
// in any batch and on any number of threads; between instruction sets they differ by rounding.
//
// Holds memory between calls. One thread at a time.
class PackedClipTower {
 public:
  PackedClipTower(std::shared_ptr<const PackedClipWeights> weights,
                  std::shared_ptr<ops::cpu::ThreadPool> pool,
                  const ops::cpu::Kernels& kernels = ops::cpu::Best());

  // As ClipTower::Forward, in float32: pixels [B, 3, S, S] -> [B, P + 1, Dv]. Blocks behind `layer`
  // are not run.
  at::Tensor Forward(const at::Tensor& pixels, int64_t layer);
  // As ClipTower::Features, in bfloat16.
  at::Tensor Features(const at::Tensor& pixels, const FeatureConfig& features);

  const VisionConfig& config() const { return config_; }
  const PackedClipWeights& weights() const { return *weights_; }

 private:
  using Linear = PackedClipWeights::Linear;
  using Norm = PackedClipWeights::Norm;
  using Block = PackedClipWeights::Block;
  // Rows with room for those that a tile takes more; kept between calls.
  class Rows {
   public:
    void* Get(int64_t rows, int64_t width, ops::cpu::Element element);

   private:
    ops::cpu::Scratch memory_;
  };

  void Embed(const at::Tensor& pixels, float* x);
  void Run(const Block& block, int64_t batch, float* x);
  void Attend(int64_t batch, const void* qkv, void* seen);

  const std::shared_ptr<const PackedClipWeights> weights_;
  const VisionConfig& config_;     // of the weights
  const ops::cpu::Element inner_;  // between products
  std::shared_ptr<ops::cpu::ThreadPool> pool_;
  const ops::cpu::Kernels& kernels_;
  ops::cpu::Multiplier multiplier_;
  Rows patches_, x_, qkv_, seen_, hidden_;
  std::vector<ops::cpu::Scratch> scratch_;  // of each thread
};

}  // namespace llava
