#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/content_digest.h"
#include "model/checkpoint/tensor_names.h"
#include "model/llava/self_test.h"
#include "model/llava/serving_model.h"
#include "model/tools/commands.h"

namespace llava {
namespace {

using nlohmann::json;

bool IsTower(const CheckpointFolder& folder) {
  return folder.manifest ? folder.manifest->kind == Manifest::Kind::kTower
                         : folder.layout == Layout::kClip;
}

void AddTensors(const TensorSource& tensors, json& description) {
  uint64_t bytes = 0, parameters = 0;
  for (const auto& [name, info] : tensors.tensors()) {
    uint64_t elements = 1;
    for (const int64_t size : info.shape) elements *= static_cast<uint64_t>(size);
    parameters += elements;
    bytes += elements * at::elementSize(info.dtype);
  }
  description["tensors"] = tensors.tensors().size();
  description["parameters"] = parameters;
  description["tensor_bytes"] = bytes;
}

uint64_t CountElements(const TensorShapes& shapes) {
  uint64_t sum = 0;
  for (const auto& [name, shape] : shapes) {
    uint64_t elements = 1;
    for (const int64_t size : shape) elements *= static_cast<uint64_t>(size);
    sum += elements;
  }
  return sum;
}

json Describe(const TowerCheckpoint& tower) {
  json description = {{"kind", "tower"}, {"name", tower.name}, {"version", tower.version}};
  AddTensors(tower.tensors, description);
  description["digests"] = {{"tower", ToHex(tower.digest)}};
  description["config"] = ToJson(tower.config);
  return description;
}

json Describe(const LanguageCheckpoint& language) {
  json description = {{"kind", "language"}, {"name", language.name}, {"version", language.version}};
  AddTensors(language.tensors, description);
  if (language.config.decoder.quantization) {
    DecoderConfig plain = language.config.decoder;
    plain.quantization.reset();
    description["parameters"] = CountElements(DecoderTensors(plain)) +
                                CountElements(ProjectorTensors(language.config.projector));
  }
  description["digests"] = {
      {"version", ToHex(language.digest)},
      {"tower", ToHex(language.tower_digest)},
      {"projector", ToHex(DigestProjector(language.config, language.tensors))},
      {"decoder", ToHex(DigestDecoder(language.config, language.tensors))},
      {"tokenizer", ToHex(language.tokenizer->digest())}};
  description["chat_template"] = language.chat_template->name();
  description["tokens"] = language.tokenizer->vocab_size();
  description["config"] = ToJson(language.config, language.tower_patches);
  return description;
}

// "a.b  value" lines of nested objects.
void PrintLines(const json& value, const std::string& name) {
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) {
      PrintLines(item, name.empty() ? key : name + "." + key);
    }
    return;
  }
  std::cout << name << "  " << (value.is_string() ? value.get<std::string>() : value.dump())
            << "\n";
}

void Compare(const CheckpointFolder& folder, const char* what,
             const std::optional<Sha256Digest>& stated, const Sha256Digest& found) {
  if (stated == found) return;
  throw std::runtime_error(folder.path.string() + ": the " + what + " has the digest " +
                           ToHex(found) + ", its manifest says " +
                           (stated ? ToHex(*stated) : "nothing"));
}

at::ScalarType DtypeOf(const VerifyCommand& command) {
  if (command.self_test == "float32") return at::kFloat;
  if (command.self_test == "bfloat16") return at::kBFloat16;
  throw std::invalid_argument("a tower computes in float32 or bfloat16, not in " +
                              command.self_test);
}

constexpr uint64_t kSelfTestKvBytes = uint64_t{1} << 30;  // memory is taken as it is needed

template <typename Checkpoint>
const SelfTest& SelfTestOf(const Checkpoint& checkpoint, const CheckpointFolder& folder) {
  if (checkpoint.self_test) return *checkpoint.self_test;
  throw std::runtime_error(folder.path.string() + ": has no self-test");
}

}  // namespace

void RunInspect(const InspectCommand& command) {
  const CheckpointFolder folder = OpenCheckpointFolder(command.path, /*verify=*/false);
  const OpenOptions options{command.tower, "", /*verify=*/false, /*packed=*/true};
  json description = IsTower(folder) ? Describe(OpenTower(folder.path, options))
                                     : Describe(OpenLanguage(folder.path, options));
  description["path"] = folder.path.string();
  description["layout"] = ToString(folder.layout);
  if (folder.manifest) {
    description["recipe"] = json::parse(folder.manifest->recipe);
    if (folder.manifest->parent_version) {
      description["parent_version"] = *folder.manifest->parent_version;
    }
  }
  if (command.json) {
    std::cout << description.dump(2) << "\n";
  } else {
    PrintLines(description, "");
  }
}

void RunVerify(const VerifyCommand& command) {
  const CheckpointFolder folder = OpenCheckpointFolder(command.path, /*verify=*/true);
  const OpenOptions options{command.tower, "", /*verify=*/false, /*packed=*/true};
  size_t tensors = 0;
  std::string tested;
  const auto tell = [&](double off) {
    std::ostringstream text;
    text << ", self-test off by " << off << " in " << command.self_test;
    tested = text.str();
  };
  if (IsTower(folder)) {
    const TowerCheckpoint tower = OpenTower(folder.path, options);
    tensors = tower.tensors.tensors().size();
    if (folder.manifest) {
      Compare(folder, "tower", folder.manifest->tower_digest,
              DigestTower(tower.config, tower.tensors));
    }
    if (!command.self_test.empty()) {
      tell(CheckSelfTest(ClipTower(tower.config, tower.tensors, at::kCPU, DtypeOf(command)),
                         SelfTestOf(tower, folder)));
    }
  } else {
    const LanguageCheckpoint language = OpenLanguage(folder.path, options);
    if (!command.self_test.empty()) {
      ServingOptions options;
      options.weights = ParseWeightType(command.self_test);
      options.kv_bytes = kSelfTestKvBytes;
      ServingModel served(language, at::kCPU, options);
      tell(CheckSelfTest(served, SelfTestOf(language, folder)));
    }
    tensors = language.tensors.tensors().size();
    if (folder.manifest) {
      Compare(folder, "projector", folder.manifest->projector_digest,
              DigestProjector(language.config, language.tensors));
      Compare(folder, "decoder", folder.manifest->decoder_digest,
              DigestDecoder(language.config, language.tensors));
      Compare(folder, "tokenizer", folder.manifest->tokenizer_digest, language.tokenizer->digest());
    }
  }
  std::cout << folder.path.string() << ": ok, " << tensors << " tensors"
            << (folder.manifest ? ", " + std::to_string(folder.manifest->files.size()) + " files"
                                : "")
            << tested << "\n";
}

}  // namespace llava
