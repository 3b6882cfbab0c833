#include "model/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace llava {

double CosineLearningRate(int64_t step, int64_t total_steps, int64_t warmup_steps, double peak) {
  if (step < warmup_steps) return peak * static_cast<double>(step) / warmup_steps;
  const double progress =
      static_cast<double>(step - warmup_steps) / std::max<int64_t>(1, total_steps - warmup_steps);
  return peak * 0.5 * (1 + std::cos(std::numbers::pi * std::min(progress, 1.0)));
}

int64_t WarmupSteps(int64_t total_steps, double ratio) {
  return static_cast<int64_t>(std::ceil(ratio * total_steps));
}

double ClipGradients(const std::vector<at::Tensor>& parameters, double max_norm) {
  at::NoGradGuard guard;
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  if (gradients.empty()) return 0;
  const std::vector<at::Tensor> norms =
      at::_foreach_norm(gradients, /*ord=*/2, /*dtype=*/at::kFloat);
  const double norm = at::linalg_vector_norm(at::stack(norms)).item<double>();
  const double scale = max_norm / (norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_
  if (std::isfinite(norm) && scale < 1) at::_foreach_mul_(gradients, scale);
  return norm;
}

AdamW::AdamW(std::vector<at::Tensor> parameters, Options options)
    : parameters_(std::move(parameters)), options_(options) {
  at::NoGradGuard guard;
  for (const at::Tensor& parameter : parameters_) {
    if (parameter.scalar_type() != at::kFloat) {
      throw std::invalid_argument("AdamW steps float32 parameters only; 16-bit ones need masters");
    }
    first_moments_.push_back(at::zeros_like(parameter));
    second_moments_.push_back(at::zeros_like(parameter));
    steps_.push_back(at::zeros({}, parameter.options()));
  }
}

void AdamW::Step(double learning_rate) {
  at::NoGradGuard guard;
  std::vector<at::Tensor> parameters, gradients, first_moments, second_moments, steps;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (!parameters_[i].grad().defined()) continue;
    parameters.push_back(parameters_[i]);
    gradients.push_back(parameters_[i].grad());
    first_moments.push_back(first_moments_[i]);
    second_moments.push_back(second_moments_[i]);
    steps.push_back(steps_[i]);
  }
  if (parameters.empty()) return;
  at::_foreach_add_(steps, 1);
  at::_fused_adamw_(parameters, gradients, first_moments, second_moments, /*max_exp_avg_sqs=*/{},
                    steps, learning_rate, options_.beta1, options_.beta2, options_.weight_decay,
                    options_.eps, /*amsgrad=*/false, /*maximize=*/false);
}

void AdamW::ZeroGradients() {
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad() = at::Tensor();
}

void AdamW::VisitState(const StateVisitor& visit) {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    visit(i, "first_moment", first_moments_[i]);
    visit(i, "second_moment", second_moments_[i]);
    visit(i, "steps", steps_[i]);
  }
}

}  // namespace llava
