#include "model/checkpoint/language_draft.h"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/config_json.h"
#include "model/checkpoint/content_digest.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/tensor_file.h"
#include "model/checkpoint/tensor_names.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

std::string PartName(int number) {
  char name[40];
  std::snprintf(name, sizeof(name), "model-%05d.safetensors", number);
  return name;
}

}  // namespace

LanguageDraft::LanguageDraft(const fs::path& root, const std::string& name,
                             const std::string& recipe)
    : name_(name), draft_(root, name, recipe) {}

void LanguageDraft::Add(const std::map<std::string, at::Tensor>& tensors) {
  const std::string file = PartName(++parts_);
  for (const auto& [name, tensor] : tensors) {
    if (!file_of_.emplace(name, file).second) {
      throw std::logic_error("tensor \"" + name + "\" is added twice");
    }
    bytes_ += tensor.nbytes();
  }
  SaveSafetensors(draft_.path() / file, tensors, {{"format", "pt"}});
}

fs::path LanguageDraft::Publish(const LanguageCheckpoint& about,
                                const SelfTestMaker& make_self_test) {
  const fs::path& folder = draft_.path();
  if (parts_ == 1) {
    fs::rename(folder / PartName(1), folder / "model.safetensors");
  } else {
    const nlohmann::json index = {{"metadata", {{"total_size", bytes_}}}, {"weight_map", file_of_}};
    WriteDurably(folder / "model.safetensors.index.json", index.dump(2) + "\n");
  }
  TensorSource tensors;
  tensors.Put(OpenTensorFolder(folder));
  CheckTensors(tensors.tensors(), LanguageTensors(about.config), {}, name_);

  Manifest manifest;
  manifest.kind = Manifest::Kind::kLanguage;
  manifest.tower_digest = about.tower_digest;
  manifest.projector_digest = DigestProjector(about.config, tensors);
  manifest.decoder_digest = DigestDecoder(about.config, tensors);
  manifest.tokenizer_digest = about.tokenizer->digest();
  if (about.in_repository && about.name == name_) manifest.parent_version = about.version;

  WriteDurably(folder / "config.json", ToJson(about.config, about.tower_patches).dump(2) + "\n");
  WriteDurably(folder / "tokenizer.model", about.tokenizer->model_bytes());
  WriteDurably(folder / "tokenizer_config.json", about.tokenizer->ConfigJson());
  WriteDurably(folder / "chat_template.json", about.chat_template->ToJson());
  std::optional<SelfTest> self_test = about.self_test;
  if (!self_test && make_self_test) {
    LanguageCheckpoint written = about;
    written.tensors = tensors;
    self_test = make_self_test(written);
  }
  draft_.AddSelfTest(self_test, manifest);
  return draft_.Publish(std::move(manifest));
}

}  // namespace llava
