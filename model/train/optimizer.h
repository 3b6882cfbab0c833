#pragma once

// What one training step does to the parameters: clipping, learning rate, AdamW (Loshchilov &
// Hutter 2019) with float32 state. Recipes: LLaVA's scripts (betas 0.9/0.999, eps 1e-8, decay 0).

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace llava {

// Share of the peak rate: linear warm-up from 0 over `warmup_steps`, then half a cosine to
// `final_rate` (step counts from 0).
double RateFactor(int64_t step, int64_t total_steps, int64_t warmup_steps, double final_rate);
// ceil(ratio * total).
int64_t WarmupSteps(int64_t total_steps, double ratio);

// Scales gradients so that their common 2-norm is at most `max_norm`; returns the norm before. A
// norm that is not finite is returned too, the gradients are then left as they are: skip the step.
// They may be on several devices.
double ClipGradients(const std::vector<at::Tensor>& parameters, double max_norm);

// One thread.
class AdamW {
 public:
  struct Options {
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  };
  // float32 leaves, perhaps on several devices, each with its state beside it. Throws
  // std::invalid_argument for another dtype.
  AdamW(std::vector<at::Tensor> parameters, Options options);
  // Parameters without a gradient are left alone. Gradients stay; ZeroGradients drops them.
  void Step(double learning_rate);
  void ZeroGradients();

  // What Step keeps from call to call, by parameter: "first_moment", "second_moment", "steps". To
  // be saved, or copied into.
  using StateVisitor =
      std::function<void(size_t parameter, const std::string& what, at::Tensor& state)>;
  void VisitState(const StateVisitor& visit);

 private:
  std::vector<at::Tensor> parameters_, first_moments_, second_moments_, steps_;
  Options options_;
};

}  // namespace llava
