#include "model/nn/projector.h"

#include <utility>

#include "model/nn/parameter_reader.h"
#include "model/ops/ops.h"

namespace llava {

Projector::Projector(const ProjectorConfig& config, const TensorSource& tensors, at::Device device,
                     at::ScalarType dtype) {
  ParameterReader reader(tensors, device, dtype);
  for (int64_t i = 0; i < config.depth; ++i) {
    Layer layer;
    // GELUs take the odd places; a lone layer has no number.
    layer.name = "model.mm_projector." + (config.depth == 1 ? "" : std::to_string(2 * i) + ".");
    const int64_t in_width = i == 0 ? config.in_width : config.out_width;
    layer.weight = reader.Read(layer.name + "weight", {config.out_width, in_width});
    layer.bias = reader.Read(layer.name + "bias", {config.out_width});
    layers_.push_back(std::move(layer));
  }
  reader.Finish("projector " + config.type());
}

at::Tensor Projector::Forward(const at::Tensor& features) const {
  at::Tensor x = ops::Linear(features, layers_[0].weight, layers_[0].bias);
  for (size_t i = 1; i < layers_.size(); ++i) {
    x = ops::Linear(ops::Activate(x, Activation::kGelu), layers_[i].weight, layers_[i].bias);
  }
  return x;
}

void Projector::VisitParameters(const ParameterVisitor& visit) {
  for (Layer& layer : layers_) {
    visit(layer.name + "weight", layer.weight);
    visit(layer.name + "bias", layer.bias);
  }
}

}  // namespace llava
