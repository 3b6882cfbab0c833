#pragma once

// The serving decoder of the CPU: packed weights, own kernels, paged keys and values.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/nn/packed_weights.h"
#include "model/nn/serving_decoder.h"
#include "model/ops/cpu/multiplier.h"
#include "model/ops/cpu/paged_attention.h"
#include "model/ops/cpu/scratch.h"
#include "model/ops/cpu/thread_pool.h"
#include "model/ops/ops.h"

namespace llava {

// Residuals are float32, what the gated unit reads and gives bfloat16 (float32 beside such
// weights): a prompt's are larger than the caches. Products round or quantise their inputs as the
// weights ask for (not at all beside float32). A row of the result depends on its own sequence
// alone, to the bit: not on the batch, on how its prompt was cut, on threads, nor on what was
// cached. Between instruction sets it differs by rounding.
class PackedLlama : public ServingDecoder {
 public:
  // Keys and values in `kv` (kAuto: float32 beside such weights, else bfloat16) in as many blocks
  // as `kv_bytes` hold; memory is taken when blocks are first written. Throws std::invalid_argument
  // if that is none.
  PackedLlama(const DecoderConfig& config, PackedDecoderWeights weights,
              std::shared_ptr<ops::cpu::ThreadPool> pool, KvType kv, uint64_t kv_bytes);

  // Bytes of one block, all layers.
  static int64_t BlockBytes(const DecoderConfig& config, ops::cpu::WeightFormat weights, KvType kv);

  at::Tensor Embed(std::span<const int32_t> ids) const override;
  at::Tensor Step(const at::Tensor& rows, std::span<const StepSequence> sequences,
                  std::span<const int64_t> wanted) override;
  void CopyBlock(int32_t from, int32_t to) override;

  int64_t num_blocks() const override { return num_blocks_; }
  uint64_t weight_bytes() const override { return weights_.bytes(); }
  const DecoderConfig& config() const override { return config_; }
  const PackedDecoderWeights& weights() const { return weights_; }
  // Matrix products since it was made.
  int64_t num_products() const { return num_products_; }

 private:
  // Rows of floats that grow and are not kept.
  class Rows {
   public:
    float* Get(int64_t rows, int64_t width) {
      return reinterpret_cast<float*>(memory_.Get(rows * width * 4));
    }

   private:
    ops::cpu::Scratch memory_;
  };

  void Norm(const float* x, const std::vector<float>& weight, int64_t rows, float* out);
  void SwiGlu(const void* gate_up, int64_t rows, void* out);
  struct Operand {
    ops::cpu::Element element;
    const void* data;
  };
  struct Result {
    ops::cpu::Element element;
    void* data;
    ops::cpu::Multiplier::Store store = ops::cpu::Multiplier::Store::kOverwrite;
  };
  void Multiply(const Operand& x, int64_t rows, const ops::cpu::PackedMatrix& weights,
                const Result& y);
  // The two halves of a layer: what its heads see [rows, H Dh], and what x becomes by it.
  const float* Attend(int64_t index, const float* x, int64_t rows);
  void FeedForward(int64_t index, const float* seen, float* x, int64_t rows);

  const DecoderConfig config_;
  const PackedDecoderWeights weights_;
  const std::shared_ptr<ops::cpu::ThreadPool> pool_;
  const ops::cpu::Kernels& kernels_;
  const ops::cpu::Element inner_;  // of the gated unit
  ops::RopeTable rope_;            // of all positions: [max_position_embeddings, Dh / 2] each

  const ops::cpu::KvLayout layout_;  // of one layer in one block
  const int64_t block_bytes_;        // of all layers
  const int64_t num_blocks_;
  ops::cpu::WeightMemory memory_;
  uint8_t* blocks_;  // [blocks][layers] of layout_.block_bytes

  ops::cpu::Multiplier multiplier_;
  ops::cpu::PagedAttention attention_;
  std::vector<ops::cpu::PagedSequence> sequences_;  // of the step at hand
  Rows x_, normed_, qkv_, seen_, gate_up_, gated_, chosen_, chosen_seen_;
  int64_t num_products_ = 0;
};

}  // namespace llava
