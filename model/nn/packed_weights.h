#pragma once

// The weights of a decoder as the serving engine on the CPU reads them: every matrix packed
// (model/ops/cpu/packed_matrix.h), those that read the same input in one.
//
// lm_head has the format of the rest, but int8 in groups of 128 beside int4: measured figures are
// in docs/benchmarks/quantization.md.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/ops/cpu/packed_matrix.h"
#include "model/ops/cpu/thread_pool.h"
#include "model/ops/cpu/weight_memory.h"

namespace llava {

using PackOptions = ops::cpu::PackedMatrix::Options;

struct PackedLayer {
  std::vector<float> input_norm, post_attention_norm;  // [D]
  ops::cpu::PackedMatrix qkv;                          // [(H + 2 Hkv) Dh, D]: q, k, v
  ops::cpu::PackedMatrix o;                            // [D, H Dh]
  ops::cpu::PackedMatrix gate_up;                      // [2 F, D]: gate, up
  ops::cpu::PackedMatrix down;                         // [D, F]
};

struct PackedDecoderWeights {
  PackOptions options;   // of the layers
  at::Tensor embedding;  // [V, D] bfloat16, beside float32 weights float32
  std::vector<PackedLayer> layers;
  std::vector<float> norm;         // [D]
  ops::cpu::PackedMatrix lm_head;  // [V, D]

  uint64_t bytes() const;  // of all of them
};

// Reads every tensor of a decoder once, one after the other, and packs it. Takes little memory
// beside the result. `tensors`: plain (float32, float16, bfloat16; others beside the decoder's are
// ignored) or packed already (config.quantization), which is only copied.
// `wanted`: nothing: as it is stored; plain tensors in bfloat16. A group of 0: any that is stored,
// else the default of the format. Throws std::invalid_argument if the checkpoint is packed in
// another way, std::runtime_error if tensors are missing, misshapen or damaged.
PackedDecoderWeights PackDecoder(const DecoderConfig& config, const TensorSource& tensors,
                                 const std::optional<PackOptions>& wanted,
                                 ops::cpu::ThreadPool& pool);

// One layer of plain tensors, and the output matrix (the embedding's if tied), packed. `options`
// are those of the layers for both. For who cannot hold all of them.
PackedLayer PackLayer(const DecoderConfig& config, const TensorSource& tensors, int64_t index,
                      const PackOptions& options, ops::cpu::ThreadPool& pool,
                      std::shared_ptr<ops::cpu::WeightMemory> memory = nullptr);
ops::cpu::PackedMatrix PackHead(const DecoderConfig& config, const TensorSource& tensors,
                                const PackOptions& options, ops::cpu::ThreadPool& pool,
                                std::shared_ptr<ops::cpu::WeightMemory> memory = nullptr);

// Throws std::runtime_error unless all tensors of the decoder are there and fit.
void CheckDecoderTensors(const DecoderConfig& config, const TensorSource& tensors);

// A matrix as the U8 tensor that a packed checkpoint holds.
at::Tensor StoredTensor(const ops::cpu::PackedMatrix& matrix);

// "bf16", "int8/128": between options and what config.json says. Throw std::invalid_argument for
// what there is not.
Quantization ToQuantization(const PackOptions& options);
// The word of --dtype that asks for such weights.
std::string DtypeWord(const Quantization& quantization);
PackOptions ToPackOptions(const Quantization& quantization);

}  // namespace llava
