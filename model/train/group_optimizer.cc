#include "model/train/group_optimizer.h"

#include <limits>
#include <utility>

namespace llava {

GroupOptimizer::GroupOptimizer(std::vector<ParameterGroup> groups, const TrainerSettings& settings)
    : groups_(std::move(groups)),
      clip_norm_(settings.clip_norm > 0 ? settings.clip_norm : std::numeric_limits<double>::max()) {
  for (const ParameterGroup& group : groups_) {
    std::vector<at::Tensor> parameters;
    for (const auto& [name, parameter] : group.parameters) parameters.push_back(parameter);
    all_.insert(all_.end(), parameters.begin(), parameters.end());
    optimizers_.emplace_back(std::move(parameters),
                             AdamW::Options{.beta1 = settings.beta1,
                                            .beta2 = settings.beta2,
                                            .eps = settings.eps,
                                            .weight_decay = group.weight_decay});
  }
}

double GroupOptimizer::Clip() { return ClipGradients(all_, clip_norm_); }

void GroupOptimizer::Step(double factor) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    optimizers_[i].Step(groups_[i].learning_rate * factor);
  }
}

void GroupOptimizer::ZeroGradients() {
  for (AdamW& optimizer : optimizers_) optimizer.ZeroGradients();
}

void GroupOptimizer::VisitState(
    const std::function<void(const std::string& name, at::Tensor& tensor)>& visit) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    const auto& parameters = groups_[i].parameters;
    for (const auto& [name, parameter] : parameters) {
      at::Tensor tensor = parameter;
      visit("parameter." + name, tensor);
    }
    optimizers_[i].VisitState([&](size_t index, const std::string& what, at::Tensor& tensor) {
      visit(what + "." + parameters[index].first, tensor);
    });
  }
}

}  // namespace llava
