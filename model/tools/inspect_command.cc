#include <cstdint>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/checkpoint_folder.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/content_digest.h"
#include "model/checkpoint/finite.h"
#include "model/checkpoint/tensor_names.h"
#include "model/llava/self_test.h"
#include "model/llava/serving_model.h"
#include "model/tools/commands.h"
#include "model/tools/common.h"

namespace llava {
namespace {

using nlohmann::json;

void AddTensors(const TensorSource& tensors, json& description) {
  description["tensors"] = tensors.tensors().size();
  description["parameters"] = tensors.numel();
  description["tensor_bytes"] = tensors.bytes();
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
    LanguageConfig plain = language.config;
    plain.decoder.quantization.reset();
    uint64_t parameters = 0;
    for (const auto& [name, shape] : LanguageTensors(plain)) {
      parameters += TensorInfo{at::kByte, shape}.numel();
    }
    description["parameters"] = parameters;
  }
  description["digests"] = {
      {"version", ToHex(language.digest)},
      {"tower", ToHex(language.tower_digest)},
      {"projector", ToHex(DigestProjector(language.config, language.tensors))},
      {"decoder", ToHex(DigestDecoder(language.config, language.tensors))},
      {"tokenizer", ToHex(language.tokenizer->digest())}};
  description["chat_template"] = language.chat_template->name();
  if (language.template_assumed) description["chat_template_assumed"] = true;
  description["tokens"] = language.tokenizer->vocab_size();
  description["config"] = ToJson(language.config, language.tower_patches);
  return description;
}

void Compare(const CheckpointFolder& folder, const char* what,
             const std::optional<Sha256Digest>& stated, const Sha256Digest& found) {
  if (stated == found) return;
  throw std::runtime_error(folder.path.string() + ": the " + what + " has the digest " +
                           ToHex(found) + ", its manifest says " +
                           (stated ? ToHex(*stated) : "nothing"));
}

// Those of a repository version were checked with its files.
void CheckFinite(const CheckpointFolder& folder, const TensorSource& tensors) {
  if (folder.manifest) return;
  std::map<std::string, uint64_t> counts;
  for (const auto& [name, info] : tensors.tensors()) {
    {
      const at::Tensor tensor = tensors.Get(name).contiguous();
      const uint64_t count =
          CountNonFinite(info.dtype, {static_cast<const uint8_t*>(tensor.const_data_ptr()),
                                      static_cast<size_t>(tensor.nbytes())});
      if (count > 0) counts[name] = count;
    }
    tensors.Release(name);
  }
  if (!counts.empty()) {
    throw std::runtime_error(folder.path.string() + ": " + DescribeNonFinite(counts));
  }
}

at::ScalarType DtypeOf(const VerifyCommand& command) {
  if (command.self_test == "float32" || command.self_test == "auto") return at::kFloat;
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
  json description = folder.is_tower() ? Describe(OpenTower(folder.path, options))
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
    VisitSettings(description, "", [](const std::string& name, const std::string& text) {
      std::cout << name << "  " << text << "\n";
    });
  }
}

void RunVerify(const VerifyCommand& command) {
  const CheckpointFolder folder = OpenCheckpointFolder(command.path, /*verify=*/true);
  const OpenOptions options{command.tower, "", /*verify=*/false, /*packed=*/true};
  json result = {{"path", folder.path.string()}, {"ok", true}};
  const auto tell = [&](double off, const std::string& arithmetic) {
    result["self_test"] = {{"off_by", off}, {"arithmetic", arithmetic}};
  };
  if (folder.is_tower()) {
    const TowerCheckpoint tower = OpenTower(folder.path, options);
    result["tensors"] = tower.tensors.tensors().size();
    CheckFinite(folder, tower.tensors);
    if (folder.manifest) {
      Compare(folder, "tower", folder.manifest->tower_digest,
              DigestTower(tower.config, tower.tensors));
    }
    if (!command.self_test.empty()) {
      const at::ScalarType dtype = DtypeOf(command);
      tell(CheckSelfTest(ClipTower(tower.config, tower.tensors, at::kCPU, dtype),
                         SelfTestOf(tower, folder)),
           dtype == at::kFloat ? "float32" : "bfloat16");
    }
  } else {
    const LanguageCheckpoint language = OpenLanguage(folder.path, options);
    CheckFinite(folder, language.tensors);
    if (!command.self_test.empty()) {
      ServingOptions serving;
      serving.weights = ParseWeightType(command.self_test);
      serving.kv_bytes = kSelfTestKvBytes;
      ServingModel served(language, at::kCPU, serving);
      tell(CheckSelfTest(served, SelfTestOf(language, folder)), ToString(served.weights()));
    }
    result["tensors"] = language.tensors.tensors().size();
    if (folder.manifest) {
      Compare(folder, "projector", folder.manifest->projector_digest,
              DigestProjector(language.config, language.tensors));
      Compare(folder, "decoder", folder.manifest->decoder_digest,
              DigestDecoder(language.config, language.tensors));
      Compare(folder, "tokenizer", folder.manifest->tokenizer_digest, language.tokenizer->digest());
    }
  }
  if (folder.manifest) result["files"] = folder.manifest->files.size();
  if (command.json) {
    std::cout << result.dump(2) << "\n";
    return;
  }
  std::cout << folder.path.string() << ": ok, " << result["tensors"].dump() << " tensors";
  if (folder.manifest) std::cout << ", " << result["files"].dump() << " files";
  if (result.contains("self_test")) {
    std::cout << ", self-test off by " << result["self_test"]["off_by"].get<double>() << " in "
              << result["self_test"]["arithmetic"].get<std::string>();
  }
  std::cout << "\n";
}

}  // namespace llava
