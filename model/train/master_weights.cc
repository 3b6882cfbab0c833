#include "model/train/master_weights.h"

#include <unordered_map>
#include <utility>

#include <ATen/core/grad_mode.h>

namespace llava {
namespace {

at::ScalarType DtypeOf(const std::string& name, const at::Tensor& parameter,
                       at::ScalarType compute_dtype) {
  const bool matrix = parameter.dim() > 1 && name.find("embed") == std::string::npos;
  return matrix ? compute_dtype : at::kFloat;
}

}  // namespace

MasterWeights::MasterWeights(Visit visit, const TensorSource& tensors,
                             const std::function<bool(const std::string& name)>& trained,
                             at::ScalarType compute_dtype)
    : visit_(std::move(visit)), compute_dtype_(compute_dtype) {
  visit_([&](const std::string& name, at::Tensor& parameter) {
    const at::NoGradGuard guard;
    if (!trained(name)) {
      parameter = parameter.detach().to(DtypeOf(name, parameter, compute_dtype_));
      return;
    }
    at::Tensor master =
        tensors.Get(name).to(at::TensorOptions(parameter.device()).dtype(at::kFloat)).clone();
    masters_.emplace_back(name, master.view(parameter.sizes()).requires_grad_());
  });
  Bind();
}

void MasterWeights::Bind() {
  std::unordered_map<std::string, const at::Tensor*> by_name;
  for (const auto& [name, master] : masters_) by_name.emplace(name, &master);
  visit_([&](const std::string& name, at::Tensor& parameter) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) return;
    const at::Tensor& master = *found->second;
    parameter = master.to(DtypeOf(name, master, compute_dtype_));
  });
}

}  // namespace llava
