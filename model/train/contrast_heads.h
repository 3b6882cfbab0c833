#pragma once

// What a tower is trained with and published without: a small text tower and the heads that compare
// its features with texts and tell places.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/nn/clip_block.h"
#include "model/nn/parameters.h"
#include "model/train/fresh_weights.h"

namespace llava {

// Texts of different lengths side by side.
struct PaddedTexts {
  explicit PaddedTexts(std::span<const std::vector<int32_t>> texts);
  at::Tensor ids;   // [B, T] int64, 0 behind the end
  at::Tensor real;  // [B, T] bool: false behind the end
};

struct ContrastShape {
  int64_t vision_width = 160;  // Dv
  int64_t vocabulary = 0;
  int64_t text_width = 128, text_layers = 2, text_heads = 4, text_length = 48;
  int64_t shared_width = 128;  // E, where pictures and texts meet
  int64_t grid = 6;            // cells a side
};

// Forward passes are const; the parameters change only through VisitParameters.
class ContrastHeads {
 public:
  // Fresh parameters.
  static NamedTensors Fresh(const ContrastShape& shape, FreshWeights& weights);

  ContrastHeads(const ContrastShape& shape, const TensorSource& tensors, at::Device device,
                at::ScalarType dtype);

  // Texts of any device. All results of these three are unit vectors. Throws std::invalid_argument
  // for longer texts than text_length. -> [B, E].
  at::Tensor Texts(const PaddedTexts& texts) const;
  // Patch features [B, P, Dv] -> [B, P, E].
  at::Tensor Regions(const at::Tensor& features) const;
  // Class features [B, Dv] -> [B, E].
  at::Tensor Pictures(const at::Tensor& class_features) const;

  // Patch features [B, P, Dv] -> logits of row and column, [B, P, 2 grid].
  at::Tensor Places(const at::Tensor& features) const;

  void VisitParameters(const ParameterVisitor& visit);

 private:
  struct Head {  // layer norm, then a linear layer
    at::Tensor norm_weight, norm_bias, weight;
  };
  at::Tensor Apply(const Head& head, const at::Tensor& features) const;

  ContrastShape shape_;
  at::Tensor words_, positions_;  // [V, Dt], [text_length, Dt]
  std::vector<ClipBlock> blocks_;
  at::Tensor text_norm_weight_, text_norm_bias_;
  at::Tensor text_projection_, picture_projection_;  // [E, Dt], [E, Dv]
  Head region_, place_;
  at::Tensor place_bias_;
};

}  // namespace llava
