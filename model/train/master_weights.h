#pragma once

// The trained parameters of a model in float32, and the same in the dtype that it computes in, on
// each of the devices that compute.

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/nn/parameters.h"

namespace llava {

// Owns float32 leaves ("masters") for the parameters of one module, of which each device that
// computes has a replica. A replica in float32 on its master's device uses the master as it is;
// else Bind gives it a copy of the matrices in its dtype, whose gradients flow back into the
// master. Embeddings, norms and biases stay in float32, and with them the sums between the layers:
// a small model in the making loses too much there to rounding.
//
// Every master has one home, and its gradient and optimizer state are there and nowhere else (as in
// ZeRO, Rajbhandari et al. 2020, stage 2): each device keeps its share of what takes 16 bytes a
// parameter, and whole only what takes 2.
class MasterWeights {
 public:
  // Calls the module's VisitParameters.
  using Visit = std::function<void(const ParameterVisitor&)>;

  // `replicas`: of one module, with the same names in the same order, each on one device. Masters
  // for those parameters whose name `trained` accepts; the others are cast to `compute_dtype` and
  // frozen. Values come from `tensors`, so that nothing is lost to rounding where the module was
  // loaded in 16 bits. `homes`: devices over which the masters are spread evenly; none: that of the
  // first replica. Throws as TensorSource::Get.
  MasterWeights(std::vector<Visit> replicas, const TensorSource& tensors,
                const std::function<bool(const std::string& name)>& trained,
                at::ScalarType compute_dtype, const std::vector<at::Device>& homes = {});

  // Before every forward pass that is to be trained or evaluated: puts the current values into the
  // replica, those that have changed by the counts of LibTorch's operations and AdamW's steps.
  // What throws leaves a replica without some of its parameters until Bind has been called again.
  // Different replicas may be bound and trained at the same time: gradients add up in the order in
  // which they arrive.
  void Bind(int64_t replica = 0);

  // Trained parameters in the module's order.
  const std::vector<std::pair<std::string, at::Tensor>>& masters() const { return masters_; }

 private:
  struct Replica {
    Visit visit;
    // By index of the master: where its copy is, and of which version of it.
    std::vector<at::Device> devices = {};
    std::vector<uint32_t> bound = {};
  };
  bool IsStale(const Replica& replica, size_t index) const;
  at::Tensor CopyFor(const Replica& replica, size_t index) const;

  at::ScalarType compute_dtype_;
  std::vector<std::pair<std::string, at::Tensor>> masters_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<Replica> replicas_;
};

}  // namespace llava
