#pragma once

// The transformer block of CLIP: pre-norm attention and MLP, every token sees every other.

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

#include "model/config/model_config.h"
#include "model/nn/parameter_reader.h"
#include "model/nn/parameters.h"

namespace llava {

struct ClipBlockShape {
  int64_t width = 0, inner = 0, heads = 0;
  double layer_norm_eps = 1e-5;
  Activation activation = Activation::kQuickGelu;
};

// Forward is const; the parameters change only through VisitParameters.
class ClipBlock {
 public:
  // Parameters `name`layer_norm1.weight and so on, as transformers' CLIPEncoderLayer has them.
  ClipBlock(const ClipBlockShape& shape, std::string name, ParameterReader& reader);

  // x [B, T, D] -> [B, T, D]. mask [B, T, T], float32: 0 for what a token sees, else -inf;
  // undefined: everything.
  at::Tensor Forward(const at::Tensor& x, const at::Tensor& mask = {}) const;

  // Queries, keys and values are one matrix inside: what a visitor puts in place of their parts is
  // joined when the call ends, so who changes it later visits again.
  void VisitParameters(const ParameterVisitor& visit);

 private:
  void VisitJoined(const std::string& part, at::Tensor& joined, const ParameterVisitor& visit);

  ClipBlockShape shape_;
  std::string name_;
  at::Tensor norm1_weight_, norm1_bias_, norm2_weight_, norm2_bias_;  // [D]
  at::Tensor qkv_weight_, qkv_bias_;                                  // [3 D, D], [3 D]
  at::Tensor out_weight_, out_bias_;                                  // [D, D], [D]
  at::Tensor fc1_weight_, fc1_bias_, fc2_weight_, fc2_bias_;          // [F, D], [F], [D, F], [D]
};

}  // namespace llava
