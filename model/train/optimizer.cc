#include "model/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <functional>
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
#include <c10/core/DeviceGuard.h>

namespace llava {

namespace {

// Those of one device together: an operation on a list wants them so.
template <typename Item>
std::vector<std::vector<Item>> ByDevice(const std::vector<Item>& items,
                                        const std::function<at::Device(const Item&)>& device) {
  std::vector<std::vector<Item>> groups;
  for (const Item& item : items) {
    auto group = std::find_if(groups.begin(), groups.end(), [&](const std::vector<Item>& others) {
      return device(others.front()) == device(item);
    });
    if (group == groups.end()) group = groups.emplace(group);
    group->push_back(item);
  }
  return groups;
}

}  // namespace

double RateFactor(int64_t step, int64_t total_steps, int64_t warmup_steps, double final_rate) {
  if (step < warmup_steps) return static_cast<double>(step) / warmup_steps;
  const double progress =
      static_cast<double>(step - warmup_steps) / std::max<int64_t>(1, total_steps - warmup_steps);
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * std::min(progress, 1.0)));
  return final_rate + (1 - final_rate) * cosine;
}

int64_t WarmupSteps(int64_t total_steps, double ratio) {
  return static_cast<int64_t>(std::ceil(ratio * total_steps));
}

double ClipGradients(const std::vector<at::Tensor>& parameters, double max_norm) {
  at::NoGradGuard guard;
  std::vector<at::Tensor> all;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) all.push_back(parameter.grad());
  }
  const auto gradients = ByDevice<at::Tensor>(all, [](const auto& one) { return one.device(); });
  std::vector<at::Tensor> norms;  // all are under way before the first is waited for
  for (const auto& together : gradients) {
    const auto each = at::_foreach_norm(together, /*ord=*/2, /*dtype=*/at::kFloat);
    norms.push_back(at::linalg_vector_norm(at::stack(each)));
  }
  double norm = 0;
  for (const at::Tensor& of_device : norms) norm = std::hypot(norm, of_device.item<double>());
  const double scale = max_norm / (norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_
  if (!std::isfinite(norm) || scale >= 1) return norm;
  for (const auto& together : gradients) at::_foreach_mul_(together, scale);
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
  std::vector<size_t> learning;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (parameters_[i].grad().defined()) learning.push_back(i);
  }
  for (const auto& together :
       ByDevice<size_t>(learning, [&](size_t i) { return parameters_[i].device(); })) {
    std::vector<at::Tensor> parameters, gradients, first_moments, second_moments, steps;
    for (const size_t i : together) {
      parameters.push_back(parameters_[i]);
      gradients.push_back(parameters_[i].grad());
      first_moments.push_back(first_moments_[i]);
      second_moments.push_back(second_moments_[i]);
      steps.push_back(steps_[i]);
    }
    const c10::DeviceGuard device(parameters.front().device());
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(parameters, gradients, first_moments, second_moments, /*max_exp_avg_sqs=*/{},
                      steps, learning_rate, options_.beta1, options_.beta2, options_.weight_decay,
                      options_.eps, /*amsgrad=*/false, /*maximize=*/false);
    // The fused one writes without counting, and copies are renewed by that count.
    for (const at::Tensor& parameter : parameters) parameter.unsafeGetTensorImpl()->bump_version();
  }
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
