#pragma once

// The trained parameters of a model in float32, and the same in the dtype that it computes in.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/nn/parameters.h"

namespace llava {

// Owns float32 leaves ("masters") for the parameters of one module. With compute dtype float32 the
// module uses them as they are; with 16 bits Bind gives it rounded copies of the matrices, whose
// gradients flow back into the masters. Embeddings, norms and biases stay in float32, and with them
// the sums between the layers: a small model in the making loses too much there to rounding. One
// thread.
class MasterWeights {
 public:
  // Calls the module's VisitParameters.
  using Visit = std::function<void(const ParameterVisitor&)>;

  // Masters for those parameters whose name `trained` accepts; the others are cast to
  // `compute_dtype` and frozen. Values come from `tensors`, so that nothing is lost to rounding
  // where the module was loaded in 16 bits. Throws as TensorSource::Get.
  MasterWeights(Visit visit, const TensorSource& tensors,
                const std::function<bool(const std::string& name)>& trained,
                at::ScalarType compute_dtype);

  // Before every forward pass that is to be trained or evaluated: puts the current values into the
  // module.
  void Bind();

  // Trained parameters in the module's order.
  const std::vector<std::pair<std::string, at::Tensor>>& masters() const { return masters_; }

 private:
  Visit visit_;
  at::ScalarType compute_dtype_;
  std::vector<std::pair<std::string, at::Tensor>> masters_;
};

}  // namespace llava
