#pragma once

// The connector between tower and decoder.

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/config/model_config.h"
#include "model/nn/parameters.h"

namespace llava {

// A linear layer, or several with exact GELU between (mlpNx_gelu), row by row. How many image
// tokens a picture takes says PictureShape; what comes between these rows and the decoder,
// model/llava/picture_projector.h.
// Names: model.mm_projector.weight/bias (linear), model.mm_projector.{0,2,4..}.weight/bias.
class Projector {
 public:
  Projector(const ProjectorConfig& config, const TensorSource& tensors, at::Device device,
            at::ScalarType dtype);

  // features [P, Dv] (or [B, P, Dv]) -> [P, D] (or [B, P, D]).
  at::Tensor Forward(const at::Tensor& features) const;
  void VisitParameters(const ParameterVisitor& visit);

 private:
  struct Layer {
    std::string name;   // up to and with the last dot
    at::Tensor weight;  // [out, in]
    at::Tensor bias;    // [out]
  };
  std::vector<Layer> layers_;
};

}  // namespace llava
