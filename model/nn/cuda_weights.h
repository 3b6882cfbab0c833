#pragma once

// The weights of a decoder as CudaLlama reads them: on the device, those that read the same input
// in one matrix.

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/nn/cuda_matrix.h"
#include "model/nn/decoder_weights.h"
#include "model/nn/packed_weights.h"

namespace llava {

struct CudaDecoderWeights {
  struct Layer {
    at::Tensor input_norm, post_attention_norm;  // [D]
    CudaMatrix qkv;                              // [(H + 2 Hkv) Dh, D]: q, k, v
    CudaMatrix o;                                // [D, H Dh]
    CudaMatrix gate_up;                          // [2 F, D]: gate, up
    CudaMatrix down;                             // [D, F]
  };
  at::Tensor embed_tokens;  // [V, D], float32 or bfloat16: what rows are and norms have
  at::Tensor norm;          // [D]
  CudaMatrix lm_head;       // [V, D]
  std::vector<Layer> layers;

  uint64_t bytes() const;       // of the device; a head that is the embedding counts once
  uint64_t step_bytes() const;  // what a step reads: all but the embedding
};

// Joined weights (ReadDecoderWeights), whose memory is shared. Throws std::invalid_argument
// for other types than float32 and bfloat16.
CudaDecoderWeights ToCuda(const DecoderWeights& weights);
// Copies packed weights onto the device; norms in the type of the embedding.
CudaDecoderWeights ToCuda(const PackedDecoderWeights& weights, at::Device device);

}  // namespace llava
