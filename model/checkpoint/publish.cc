#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/config_json.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/language_draft.h"
#include "model/checkpoint/version_draft.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// Files of large models are as small as that where they are not too many then: many are read and
// checked side by side, and each is used as soon as it is right.
constexpr uint64_t kLeastShard = uint64_t{16} << 20;
constexpr uint64_t kMostShards = 128;

std::map<std::string, at::Tensor> AllOf(const TensorSource& tensors) {
  std::map<std::string, at::Tensor> all;
  for (const auto& [name, info] : tensors.tensors()) all[name] = tensors.Get(name);
  return all;
}

// Where a tensor of a language model comes when it is read to be served: the embedding, the layers
// by number, the output.
std::pair<int, int> Turn(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  if (name.starts_with(kLayers)) return {1, std::atoi(name.c_str() + kLayers.size())};
  return {name == "model.norm.weight" || name == "lm_head.weight" ? 2 : 0, 0};
}

// The names of the tensors of each file.
std::vector<std::vector<std::string>> ShardsOf(const TensorSource& tensors) {
  std::vector<std::pair<std::pair<int, int>, std::string>> order;
  for (const auto& [name, info] : tensors.tensors()) order.emplace_back(Turn(name), name);
  std::sort(order.begin(), order.end());
  const uint64_t most = std::max(kLeastShard, tensors.bytes() / kMostShards);
  std::vector<std::vector<std::string>> shards(1);
  uint64_t size = 0;
  for (auto& [turn, name] : order) {
    const uint64_t bytes = tensors.tensors().at(name).bytes();
    if (size > 0 && size + bytes > most) {
      shards.emplace_back();
      size = 0;
    }
    size += bytes;
    shards.back().push_back(std::move(name));
  }
  return shards;
}

}  // namespace

fs::path PublishTower(const TowerCheckpoint& checkpoint, const fs::path& root,
                      const std::string& name, const std::string& recipe) {
  Manifest manifest;
  manifest.kind = Manifest::Kind::kTower;
  manifest.tower_digest = checkpoint.digest;
  if (checkpoint.in_repository && checkpoint.name == name) {
    manifest.parent_version = checkpoint.version;
  }
  VersionDraft draft(root, name, recipe);
  SaveSafetensors(draft.path() / "model.safetensors", AllOf(checkpoint.tensors),
                  {{"format", "pt"}});
  WriteDurably(draft.path() / "config.json", ToJson(checkpoint.config).dump(2) + "\n");
  draft.AddSelfTest(checkpoint.self_test, manifest);
  return draft.Publish(std::move(manifest));
}

fs::path PublishLanguage(const LanguageCheckpoint& checkpoint, const fs::path& root,
                         const std::string& name, const std::string& recipe) {
  LanguageDraft draft(root, name, recipe);
  for (const std::vector<std::string>& names : ShardsOf(checkpoint.tensors)) {
    std::map<std::string, at::Tensor> shard;  // no more of it needs to be in memory
    for (const std::string& each : names) shard[each] = checkpoint.tensors.Get(each);
    draft.Add(shard);
  }
  return draft.Publish(checkpoint);
}

}  // namespace llava
