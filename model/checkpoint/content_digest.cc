#include "model/checkpoint/content_digest.h"

#include <functional>

#include "model/checkpoint/config_json.h"
#include "model/checkpoint/mapped_tensor.h"
#include "model/checkpoint/tensor_names.h"

namespace llava {
namespace {

Sha256Digest Digest(const std::string& title, const nlohmann::json& config,
                    const TensorSource& tensors,
                    const std::function<bool(const std::string&)>& belongs) {
  Sha256 hash;
  hash.Update(title + "\n" + config.dump() + "\n");
  for (const auto& [name, info] : tensors.tensors()) {
    if (!belongs(name)) continue;
    hash.Update(name + "\n" + DtypeName(info.dtype) + "\n" + ShapeText(info.shape) + "\n");
    {
      const at::Tensor tensor = tensors.Get(name).contiguous();
      hash.Update(std::span(static_cast<const uint8_t*>(tensor.const_data_ptr()), tensor.nbytes()));
    }
    tensors.Release(name);
  }
  return hash.Finish();
}

}  // namespace

Sha256Digest DigestTower(const VisionConfig& config, const TensorSource& tensors) {
  return Digest("llava tower 1", ToJson(config).at("vision"), tensors,
                [](const std::string&) { return true; });
}

Sha256Digest DigestProjector(const LanguageConfig& config, const TensorSource& tensors) {
  return Digest("llava projector 1", ToJson(config, 0).at("projector"), tensors, InProjector);
}

Sha256Digest DigestDecoder(const LanguageConfig& config, const TensorSource& tensors) {
  return Digest("llava decoder 1", ToJson(config, 0).at("decoder"), tensors,
                [](const std::string& name) { return !InProjector(name); });
}

}  // namespace llava
