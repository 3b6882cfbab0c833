#pragma once

#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/train/optimizer.h"
#include "model/train/trainer.h"
#include "model/train/training_task.h"

namespace llava {

// What follows the backward pass of a step, for all groups of parameters: clipping over all of them
// together, and AdamW with the rate and decay of each group. One thread.
class GroupOptimizer {
 public:
  GroupOptimizer(std::vector<ParameterGroup> groups, const TrainerSettings& settings);

  const std::vector<ParameterGroup>& groups() const { return groups_; }

  // Returns the norm before, as ClipGradients.
  double Clip();
  // `factor`: of the groups' peak rates.
  void Step(double factor);
  void ZeroGradients();

  // Everything that the next step depends on, by name.
  void VisitState(const std::function<void(const std::string& name, at::Tensor& tensor)>& visit);

 private:
  const std::vector<ParameterGroup> groups_;
  const double clip_norm_;
  std::vector<at::Tensor> all_;
  std::vector<AdamW> optimizers_;
};

}  // namespace llava
