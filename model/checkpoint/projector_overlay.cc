#include <cstdint>
#include <map>
#include <stdexcept>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/content_digest.h"
#include "model/checkpoint/tensor_names.h"

namespace llava {
namespace {

constexpr const char* kFileName = "mm_projector.bin";
constexpr std::string_view kMark = "mm_projector.";

// Layers of a projector with these canonical names: one weight without a number is the linear kind.
int64_t DepthOf(const TensorSource& projector) {
  int64_t weights = 0;
  for (const auto& [name, info] : projector.tensors()) weights += name.ends_with(".weight");
  return weights;
}

}  // namespace

void OverlayProjector(LanguageCheckpoint& checkpoint, const std::filesystem::path& path) {
  const auto where = std::filesystem::is_directory(path) ? path / kFileName : path;
  const std::shared_ptr<const TensorFile> file = TensorFile::Open(where);
  TensorSource projector;
  std::string others;
  for (const auto& [stored, info] : file->tensors()) {
    const size_t mark = stored.find(kMark);
    if (mark == std::string::npos) {
      others += (others.empty() ? "" : ", ") + stored;
      continue;
    }
    projector.Add("model." + stored.substr(mark), file, stored);
  }
  if (!others.empty()) {
    throw std::runtime_error(where.string() + ": holds more than a projector (" + others +
                             "); trained embeddings of image marks are not supported");
  }
  LanguageConfig config = checkpoint.config;
  config.projector.depth = DepthOf(projector);
  NameSingleLayer(config.projector, projector);
  CheckTensors(projector.tensors(), ProjectorTensors(config.projector), {}, where.string());

  for (const auto& [name, shape] : ProjectorTensors(checkpoint.config.projector)) {
    checkpoint.tensors.Remove(name);
  }
  checkpoint.tensors.Put(projector);
  checkpoint.config = config;
  checkpoint.self_test.reset();  // of the old projector
  checkpoint.digest = HashBytes("llava overlay 1\n" + ToBytes(checkpoint.digest) +
                                ToBytes(DigestProjector(config, checkpoint.tensors)));
}

}  // namespace llava
