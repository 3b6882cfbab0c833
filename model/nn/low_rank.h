#pragma once

// Training a difference of low rank beside frozen matrices (LoRA, Hu et al. 2021, as PEFT computes
// it): y = W x + alpha / r B A dropout(x).

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/nn/parameters.h"

namespace llava {

struct LowRankOptions {
  int64_t rank = 128;
  double alpha = 256;  // over the rank: the scale
  double dropout = 0;  // of what A reads

  double scale() const { return alpha / static_cast<double>(rank); }
};

// Adapters of the seven matrices of each of a decoder's layers.
class LowRankAdapters {
 public:
  enum Matrix { kQ, kK, kV, kO, kGate, kUp, kDown, kMatrices };
  struct Pair {
    at::Tensor a, b;  // [r, in], [out, r]
  };

  // `tensors`: by the names of Factors. Throws std::runtime_error naming all that are missing or
  // misshapen.
  LowRankAdapters(const DecoderConfig& config, const LowRankOptions& options,
                  const TensorSource& tensors, at::Device device, at::ScalarType dtype);

  // What is added to W x: x [T, in] -> [T, out].
  at::Tensor Difference(int64_t layer, Matrix matrix, const at::Tensor& x) const;
  // What is left out of x is drawn anew for each number; none: nothing is left out.
  void set_dropout_draw(std::optional<uint64_t> number) { draw_ = number; }

  // Of one layer, behind its own.
  void VisitParameters(int64_t layer, const ParameterVisitor& visit);

  // By matrix ("model.layers.0.self_attn.q_proj.weight") the names of its factors
  // ("...q_proj.lora_A.weight").
  static std::map<std::string, std::array<std::string, 2>> Factors(const DecoderConfig& config);

 private:
  LowRankOptions options_;
  std::optional<uint64_t> draw_;
  std::vector<std::array<Pair, kMatrices>> layers_;
};

}  // namespace llava
