#pragma once

// The ServingDecoder for CUDA: LibTorch's products of many rows and prefill attention, own kernels
// for everything else, and steps of single tokens recorded as CUDA graphs.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "model/nn/cuda_weights.h"
#include "model/nn/serving_decoder.h"
#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/runtime.h"
#include "model/ops/ops.h"

namespace llava {

struct CudaLlamaOptions {
  uint64_t kv_bytes = uint64_t{1} << 30;  // for blocks of keys and values
  bool graphs = true;                     // of steps in which every sequence has one token
};

// One thread. Attention and everything else of this file gives a row the same bits in any batch;
// products sum in another order for other numbers of rows (cuBLAS; packed weights beyond 16;
// streams).
class CudaLlama : public ServingDecoder {
 public:
  // Rows, keys and values have the type of the embedding. Throws std::invalid_argument if the
  // budget holds no block or there is no kernel for the type or the heads.
  CudaLlama(const DecoderConfig& config, CudaDecoderWeights weights,
            const CudaLlamaOptions& options);
  ~CudaLlama() override;

  at::Tensor Embed(std::span<const int32_t> ids) const override;
  at::Tensor Step(const at::Tensor& rows, std::span<const StepSequence> sequences,
                  std::span<const int64_t> wanted) override;
  bool draws() const override;
  DrawnStep StepAndDraw(const at::Tensor& rows, std::span<const StepSequence> sequences,
                        std::span<const int64_t> wanted,
                        std::span<const std::optional<TokenChoice>> choices,
                        int64_t known_ids) override;
  // Chooses the quicker products for few rows, by measuring, and records the graphs.
  std::string Prepare(int64_t sequences, int64_t tokens, const DevicePieces& piece) override;
  void CopyBlock(int32_t from, int32_t to) override;

  // Bytes that the graphs of steps of up to `sequences` sequences keep, about, with cuBLAS's work
  // space and, of `packed` weights, the largest matrix unpacked.
  static uint64_t GraphBytes(const DecoderConfig& config, int64_t sequences, bool packed);
  // Graphs recorded so far.
  int64_t num_graphs() const;
  // Sizes of graphs whose products are streamed (CudaMatrix); others leave them to cuBLAS, or of
  // packed weights to the kernels for any number of rows. Until Prepare: all that can be.
  const std::set<int64_t>& streamed() const { return streamed_; }
  int64_t num_blocks() const override { return num_blocks_; }
  uint64_t weight_bytes() const override { return weights_.bytes(); }
  const CudaDecoderWeights& weights() const { return weights_; }
  const DecoderConfig& config() const override { return config_; }

 private:
  struct Cache {
    at::Tensor keys, values;  // [blocks + 1, tokens of a block, Hkv, Dh]
  };
  struct Batch;
  struct DecodeGraph;

  // Step whose logits stay on the device, until the next one.
  at::Tensor Logits(const at::Tensor& rows, std::span<const StepSequence> sequences,
                    std::span<const int64_t> wanted);
  // Logits of the rows that are wanted, in the type of the head.
  at::Tensor Forward(const at::Tensor& rows, const Batch& batch) const;
  void Attend(const Cache& cache, const at::Tensor& qkv, const Batch& batch,
              const at::Tensor& out) const;
  void Prefill(const Cache& cache, const at::Tensor& qkv, const Batch& batch,
               const at::Tensor& out) const;
  void AddNorm(const at::Tensor& residual, const at::Tensor& delta, const at::Tensor& weight,
               const at::Tensor& out) const;
  // Logits [T, V] of a step whose sequences have one token each, on the device.
  at::Tensor Decode(DecodeGraph& graph, const at::Tensor& rows,
                    std::span<const StepSequence> sequences, at::ArrayRef<int32_t> positions,
                    at::ArrayRef<int32_t> slots);
  bool Streams(int64_t rows) const;
  // Whether steps of `size` sequences are to stream: unless they are slower, or compute something
  // else. Returns what it found; nothing if there was no memory to measure.
  std::string ChooseProducts(int64_t size, const DevicePieces& piece);
  // Null if there was no memory for it.
  DecodeGraph* GraphFor(int64_t sequences, int64_t splits);
  std::unique_ptr<DecodeGraph> Record(int64_t size, int64_t splits, const cuda::Graph* beside);
  // On the device, without waiting.
  at::Tensor Upload(at::ArrayRef<int32_t> values) const;

  DecoderConfig config_;
  CudaLlamaOptions options_;
  CudaDecoderWeights weights_;
  at::Device device_;
  cuda::Element element_;
  int64_t num_blocks_;
  std::vector<Cache> caches_;  // of each layer
  at::Tensor kv_;        // [L, 2, blocks + 1, tokens of a block, Hkv, Dh]; the last is a spare
  ops::RopeTable rope_;  // of all positions
  // By sequences and stretches.
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<DecodeGraph>> graphs_;
  const cuda::Graph* first_graph_ = nullptr;  // whose memory all others use
  std::set<int64_t> streamed_;
};

}  // namespace llava
