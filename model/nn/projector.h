#pragma once

// The connector between tower and decoder: features of one picture to image tokens.

#include <memory>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/nn/parameters.h"

namespace llava {

// The seam [P, Dv] -> [N, D]. Nobody assumes N = P: resamplers and merges fit in here.
class Connector {
 public:
  virtual ~Connector() = default;
  // Image tokens of a picture with `patches` feature rows.
  virtual int64_t NumImageTokens(int64_t patches) const = 0;
  // features [P, Dv] (or [B, P, Dv]) -> [N, D] (or [B, N, D]).
  virtual at::Tensor Forward(const at::Tensor& features) const = 0;
  virtual void VisitParameters(const ParameterVisitor& visit) = 0;
};

// Linear layer, or several with exact GELU between (mlpNx_gelu). N = P.
// Names: model.mm_projector.weight/bias (linear), model.mm_projector.{0,2,4..}.weight/bias.
std::unique_ptr<Connector> LoadProjector(const ProjectorConfig& config, const TensorSource& tensors,
                                         at::Device device, at::ScalarType dtype);

}  // namespace llava
