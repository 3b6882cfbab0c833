#include "model/checkpoint/memory_tensors.h"

#include <memory>
#include <utility>

namespace llava {
namespace {

class MemoryFile : public TensorFile {
 public:
  explicit MemoryFile(std::map<std::string, at::Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const auto& [name, tensor] : tensors_) {
      infos_[name] = {tensor.scalar_type(), tensor.sizes().vec()};
    }
  }
  const std::map<std::string, TensorInfo>& tensors() const override { return infos_; }
  at::Tensor Get(const std::string& name) const override { return tensors_.at(name); }

 private:
  std::map<std::string, at::Tensor> tensors_;
  std::map<std::string, TensorInfo> infos_;
};

}  // namespace

TensorSource MemoryTensors(std::map<std::string, at::Tensor> tensors) {
  TensorSource source;
  ReplaceTensors(source, std::move(tensors));
  return source;
}

void ReplaceTensors(TensorSource& source, std::map<std::string, at::Tensor> tensors) {
  source.Put(std::make_shared<const MemoryFile>(std::move(tensors)));
}

}  // namespace llava
