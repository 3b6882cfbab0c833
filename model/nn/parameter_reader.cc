#include "model/nn/parameter_reader.h"

#include <sstream>
#include <stdexcept>

namespace llava {

at::Tensor ParameterReader::Read(const std::string& name, at::IntArrayRef shape) {
  const auto found = tensors_.tensors().find(name);
  if (found == tensors_.tensors().end()) {
    faults_.push_back(name + " is missing");
    return {};
  }
  if (at::IntArrayRef(found->second.shape) != shape) {
    std::ostringstream fault;
    fault << name << " has shape " << at::IntArrayRef(found->second.shape) << ", expected "
          << shape;
    faults_.push_back(fault.str());
    return {};
  }
  // Always a copy: the source may be a mapped file that ends with the checkpoint.
  at::Tensor copy =
      tensors_.Get(name).to(at::TensorOptions(device_).dtype(dtype_),
                            /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  tensors_.Release(name);
  return copy;
}

void ParameterReader::Finish(const std::string& module) const {
  if (faults_.empty()) return;
  std::string message =
      module + ": " + std::to_string(faults_.size()) + " tensors do not fit the configuration:";
  for (const std::string& fault : faults_) message += "\n  " + fault;
  throw std::runtime_error(message);
}

}  // namespace llava
