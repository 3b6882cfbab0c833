#pragma once

// The connector between tower and decoder.

#include <memory>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/nn/parameters.h"

namespace llava {

// Row by row. How many image tokens a picture takes says PictureShape; what comes between these
// rows and the decoder, model/llava/picture_projector.h.
class Connector {
 public:
  virtual ~Connector() = default;
  // features [P, Dv] (or [B, P, Dv]) -> [P, D] (or [B, P, D]).
  virtual at::Tensor Forward(const at::Tensor& features) const = 0;
  virtual void VisitParameters(const ParameterVisitor& visit) = 0;
};

// Linear layer, or several with exact GELU between (mlpNx_gelu).
// Names: model.mm_projector.weight/bias (linear), model.mm_projector.{0,2,4..}.weight/bias.
std::unique_ptr<Connector> LoadProjector(const ProjectorConfig& config, const TensorSource& tensors,
                                         at::Device device, at::ScalarType dtype);

}  // namespace llava
