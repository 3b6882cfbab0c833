#pragma once

// The fixtures' models as LLaVA-1.6: with the newline and the canvases of
// tests/parity/next_golden.py. Needs llava_checkpoint.

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "model/checkpoint/tensor_file.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"

namespace llava {

// Of the folder's tensors, those of transformers or of the original.
inline at::Tensor NextGolden(const std::string& name) {
  return TensorFile::Open(SourceDir() + "/tests/parity/next.safetensors")->Get(name).clone();
}

// A copy of the fixture, with another configuration and the newline under this name.
inline std::filesystem::path WriteNext(const std::string& fixture, const std::string& newline,
                                       const std::filesystem::path& folder,
                                       const std::function<void(nlohmann::json&)>& edit) {
  namespace fs = std::filesystem;
  const fs::path from = OwnFixturesDir() / fixture;
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("model")) fs::copy(entry.path(), folder / name);
  }
  std::map<std::string, at::Tensor> tensors;
  const std::shared_ptr<const TensorFile> file = OpenTensorFolder(from);
  for (const auto& [name, info] : file->tensors()) tensors[name] = file->Get(name);
  tensors[newline] = NextGolden("image_newline");
  SaveSafetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  nlohmann::json config = nlohmann::json::parse(std::ifstream(from / "config.json"));
  edit(config);
  std::ofstream(folder / "config.json") << config.dump(1);
  return folder;
}

// As transformers writes it: the height comes first.
inline std::filesystem::path WriteTinyNext(const std::filesystem::path& folder) {
  return WriteNext("tiny-llava", "image_newline", folder, [](nlohmann::json& config) {
    config["model_type"] = "llava_next";
    config["image_grid_pinpoints"] = {{112, 56}, {56, 112}, {112, 112}, {56, 168}, {168, 56}};
  });
}

// As the original code writes it, with its tower inside: the width comes first.
inline std::filesystem::path WriteOriginalNext(const std::filesystem::path& folder) {
  return WriteNext("orig-bf16", "model.image_newline", folder, [](nlohmann::json& config) {
    config["mm_vision_tower"] = (OwnFixturesDir() / "clip-tower").string();
    config["image_aspect_ratio"] = "anyres";
    config["mm_patch_merge_type"] = "spatial_unpad";
    config["image_grid_pinpoints"] = {{56, 112}, {112, 56}, {112, 112}, {168, 56}, {56, 168}};
  });
}

}  // namespace llava
