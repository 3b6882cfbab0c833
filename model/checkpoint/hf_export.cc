#include "model/checkpoint/hf_export.h"

#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <ATen/Functions.h>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/hf_files.h"
#include "model/checkpoint/mapped_tensor.h"
#include "model/checkpoint/tensor_file.h"
#include "model/checkpoint/tensor_names.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// A folder under another name beside its own, which goes away with the object unless it was
// renamed.
class FolderDraft {
 public:
  explicit FolderDraft(const fs::path& folder) : folder_(fs::absolute(folder).lexically_normal()) {
    if (!folder_.has_filename()) folder_ = folder_.parent_path();
    if (fs::exists(fs::symlink_status(folder_))) FailExists();
    draft_ = folder_.string() + ".tmp-" + RandomName();
    std::error_code error;
    fs::create_directory(draft_, error);
    if (error) {
      throw std::runtime_error(draft_.string() + ": cannot create: " + error.message());
    }
  }
  ~FolderDraft() {
    std::error_code ignored;
    if (!published_) fs::remove_all(draft_, ignored);
  }
  FolderDraft(const FolderDraft&) = delete;
  FolderDraft& operator=(const FolderDraft&) = delete;

  const fs::path& path() const { return draft_; }
  void Publish() {
    SyncFolder(draft_);
    if (!RenameNewFolder(draft_, folder_)) FailExists();
    published_ = true;
    SyncFolder(folder_.parent_path());
  }

 private:
  [[noreturn]] void FailExists() const {
    throw std::runtime_error(folder_.string() +
                             ": is there already, and nothing is overwritten: name a new folder");
  }

  fs::path folder_, draft_;
  bool published_ = false;
};

struct Stopped {};

// What is written: the tensors of both models under llava-hf's names, as they shall be.
class HfTensors {
 public:
  HfTensors(const LanguageCheckpoint& language, const TowerCheckpoint& tower, int64_t rows,
            std::optional<at::ScalarType> dtype)
      : rows_(rows) {
    for (const TensorSource* source : {&language.tensors, &tower.tensors}) {
      for (auto [name, info] : source->tensors()) {
        if (dtype) info.dtype = *dtype;
        if (IsTable(name)) info.shape[0] = rows;
        const std::string stored = ToHfName(name);
        infos_[stored] = info;
        places_[stored] = {source, name};
      }
    }
  }
  const std::map<std::string, TensorInfo>& infos() const { return infos_; }
  at::Tensor Get(const std::string& stored) const {
    const auto& [source, name] = places_.at(stored);
    at::Tensor tensor = source->Get(name);
    if (IsTable(name) && tensor.size(0) < rows_) {
      const at::Tensor mean = tensor.mean(0, /*keepdim=*/true, at::kFloat).to(tensor.dtype());
      tensor = at::cat({tensor, mean.expand({rows_ - tensor.size(0), -1})});
    }
    const at::ScalarType dtype = infos_.at(stored).dtype;
    if (tensor.scalar_type() == dtype) return tensor;
    const at::Tensor converted = tensor.to(dtype);
    if (!at::isfinite(converted).all().item<bool>()) {
      throw std::runtime_error("tensor \"" + name + "\" has values beyond " + DtypeName(dtype) +
                               ": export with --dtype bfloat16 or float32");
    }
    return converted;
  }
  void Release(const std::string& stored) const {
    const auto& [source, name] = places_.at(stored);
    source->Release(name);
  }

 private:
  static bool IsTable(const std::string& name) {
    return name == "model.embed_tokens.weight" || name == "lm_head.weight";
  }

  int64_t rows_;
  std::map<std::string, TensorInfo> infos_;
  std::map<std::string, std::pair<const TensorSource*, std::string>> places_;
};

using Shard = std::map<std::string, TensorInfo>;

std::vector<Shard> ShardsOf(const std::map<std::string, TensorInfo>& infos, uint64_t most) {
  std::vector<Shard> shards(1);
  uint64_t bytes = 0;
  for (const auto& [name, info] : infos) {
    if (bytes > 0 && bytes + info.bytes() > most) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += info.bytes();
    shards.back()[name] = info;
  }
  return shards;
}

std::string ShardName(size_t number, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", number, count);
  return name;
}

void WriteTensors(const HfTensors& tensors, const fs::path& folder,
                  const HfExportOptions& options) {
  const std::vector<Shard> shards = ShardsOf(tensors.infos(), options.shard_bytes);
  std::map<std::string, std::string> file_of;
  uint64_t bytes = 0, done = 0;
  std::string last;
  const auto get = [&](const std::string& name) {
    if (!last.empty()) tensors.Release(last);  // it is written
    last = name;
    if (options.step && !options.step(done++, tensors.infos().size())) throw Stopped();
    return tensors.Get(name);
  };
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = ShardName(i + 1, shards.size());
    StreamSafetensors(folder / file, shards[i], get, {{"format", "pt"}});
    for (const auto& [name, info] : shards[i]) {
      file_of[name] = file;
      bytes += info.bytes();
    }
  }
  if (shards.size() > 1) {
    const nlohmann::json index = {{"metadata", {{"total_size", bytes}}}, {"weight_map", file_of}};
    WriteDurably(folder / "model.safetensors.index.json", index.dump(2) + "\n");
  }
  if (options.step) options.step(done, done);
}

}  // namespace

bool ExportHf(const LanguageCheckpoint& language, const TowerCheckpoint& tower,
              const fs::path& folder, const HfExportOptions& options) {
  CheckHfCanHold(language);
  const HfTokens tokens = HfTokensOf(language);
  const HfTensors tensors(language, tower, tokens.rows, options.dtype);
  FolderDraft draft(folder);
  try {
    WriteTensors(tensors, draft.path(), options);
  } catch (const Stopped&) {
    return false;
  }
  const at::ScalarType dtype = tensors.infos().at(ToHfName("model.embed_tokens.weight")).dtype;
  for (const auto& [name, content] : HfFiles(language, tower, tokens, dtype)) {
    WriteDurably(draft.path() / name, content);
  }
  draft.Publish();
  return true;
}

}  // namespace llava
