#include "model/train/master_weights.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>

namespace llava {
namespace {

constexpr uint32_t kNever = UINT32_MAX;

at::ScalarType DtypeOf(const std::string& name, const at::Tensor& parameter,
                       at::ScalarType compute_dtype) {
  const bool matrix = parameter.dim() > 1 && name.find("embed") == std::string::npos;
  return matrix ? compute_dtype : at::kFloat;
}

// Gives one parameter after the other to the device that has least. Neighbours in a layer come to
// different ones, so that no link carries the gradients of a whole layer.
class Homes {
 public:
  explicit Homes(std::vector<at::Device> devices)
      : devices_(std::move(devices)), parameters_(devices_.size()) {}
  at::Device Next(int64_t parameters) {
    const auto least = std::min_element(parameters_.begin(), parameters_.end());
    *least += parameters;
    return devices_[least - parameters_.begin()];
  }

 private:
  std::vector<at::Device> devices_;
  std::vector<int64_t> parameters_;
};

}  // namespace

MasterWeights::MasterWeights(std::vector<Visit> replicas, const TensorSource& tensors,
                             const std::function<bool(const std::string& name)>& trained,
                             at::ScalarType compute_dtype, const std::vector<at::Device>& homes)
    : compute_dtype_(compute_dtype) {
  const at::NoGradGuard guard;
  Homes spread(homes);
  for (Visit& visit : replicas) {
    Replica& replica = replicas_.emplace_back();
    const bool first = replicas_.size() == 1;
    visit([&](const std::string& name, at::Tensor& parameter) {
      if (!trained(name)) {
        parameter = parameter.detach().to(DtypeOf(name, parameter, compute_dtype_));
        return;
      }
      replica.devices.push_back(parameter.device());
      if (!first) return;
      const at::Device home = homes.empty() ? parameter.device() : spread.Next(parameter.numel());
      const at::Tensor master = tensors.Get(name).to(at::TensorOptions(home).dtype(at::kFloat),
                                                     /*non_blocking=*/false, /*copy=*/true);
      index_.emplace(name, masters_.size());
      masters_.emplace_back(name, master.view(parameter.sizes()).requires_grad_());
    });
    if (replica.devices.size() != masters_.size()) {
      throw std::invalid_argument("replicas of one module have the same parameters");
    }
    replica.visit = std::move(visit);
    replica.bound.assign(masters_.size(), kNever);
  }
  for (size_t i = 0; i < replicas_.size(); ++i) Bind(static_cast<int64_t>(i));
}

bool MasterWeights::IsStale(const Replica& replica, size_t index) const {
  return replica.bound[index] != masters_[index].second._version();
}

at::Tensor MasterWeights::CopyFor(const Replica& replica, size_t index) const {
  const auto& [name, master] = masters_[index];
  // Rounded first: half as much to send, there and, as a gradient, back.
  at::Tensor copy = master.to(DtypeOf(name, master, compute_dtype_)).to(replica.devices[index]);
  // Autograd takes what was made last first. Said to be the last of all, the way home is taken as
  // soon as there is a gradient, not behind the whole pass with all gradients waiting.
  for (auto node = copy.grad_fn(); node && node->num_outputs() > 0;) {
    node->set_sequence_nr(UINT64_MAX);
    node = node->next_edge(0).function;
  }
  return copy;
}

void MasterWeights::Bind(int64_t number) {
  Replica& replica = replicas_[number];
  const at::AutoGradMode gradients_flow(true);  // also for those who evaluate first
  std::vector<size_t> stale;
  for (size_t i = 0; i < masters_.size(); ++i) {
    if (IsStale(replica, i)) stale.push_back(i);
  }
  if (stale.empty()) return;
  for (const size_t index : stale) replica.bound[index] = kNever;  // also if something throws
  const auto renew = [&](size_t begin, size_t end) {
    replica.visit([&](const std::string& name, at::Tensor& parameter) {
      const auto found = index_.find(name);
      if (found == index_.end()) return;
      const size_t index = found->second;
      if (index < begin || index >= end || !IsStale(replica, index)) return;
      parameter = at::Tensor();  // first, so that there is never more than one copy of the model
      parameter = CopyFor(replica, index);
    });
  };
  // Each begins somewhere else, so that not all ask the same device at the same time. The first
  // visits once: a ClipBlock joins what it is given in one visit.
  const size_t begin = stale[stale.size() * static_cast<size_t>(number) / replicas_.size()];
  renew(begin, masters_.size());
  if (begin > stale.front()) renew(0, begin);
  for (const size_t index : stale) replica.bound[index] = masters_[index].second._version();
}

}  // namespace llava
