#include "model/checkpoint/tensor_file.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/mapped_file.h"
#include "model/checkpoint/safetensors.h"
#include "model/checkpoint/tensor_source.h"
#include "model/checkpoint/torch_archive.h"

namespace llava {
namespace {

using nlohmann::json;

std::shared_ptr<const TensorFile> OpenIn(const std::filesystem::path& folder,
                                         const std::string& name, const TensorFiles& opened) {
  const auto there = opened.find(name);
  return there != opened.end() ? there->second : TensorFile::Open(folder / name);
}

// The tensors that an index lists, each in the shard it names.
class ShardedFile : public TensorFile {
 public:
  ShardedFile(const std::filesystem::path& index, const TensorFiles& opened) {
    const json listing = json::parse(ReadSmallFile(index), nullptr, /*allow_exceptions=*/false);
    if (!listing.is_object() || !listing.contains("weight_map") ||
        !listing["weight_map"].is_object()) {
      throw std::runtime_error(index.string() + ": has no object \"weight_map\"");
    }
    TensorFiles shards;
    std::string missing;
    for (const auto& [name, value] : listing["weight_map"].items()) {
      const std::string file = value.is_string() ? value.get<std::string>() : "";
      if (file.empty() || std::filesystem::path(file).filename() != file || file == "..") {
        throw std::runtime_error(index.string() + ": \"" + name +
                                 "\" is not in a file of the folder");
      }
      auto& shard = shards[file];
      if (!shard) shard = OpenIn(index.parent_path(), file, opened);
      if (shard->tensors().contains(name)) {
        all_.Add(name, shard, name);
      } else {
        missing += (missing.empty() ? " " : ", ") + name + " in " + file;
      }
    }
    if (!missing.empty()) {
      throw std::runtime_error(index.string() +
                               ": these tensors are listed but missing:" + missing);
    }
  }

  const std::map<std::string, TensorInfo>& tensors() const override { return all_.tensors(); }
  at::Tensor Get(const std::string& name) const override { return all_.Get(name); }
  void Release(const std::string& name) const override { all_.Release(name); }
  void Finish() const override { all_.Finish(); }

 private:
  TensorSource all_;
};

}  // namespace

uint64_t TensorInfo::numel() const {
  uint64_t elements = 1;
  for (const int64_t size : shape) elements *= static_cast<uint64_t>(size);
  return elements;
}

std::unique_ptr<TensorFile> TensorFile::Open(const std::filesystem::path& path) {
  return Open(std::make_shared<const MappedFile>(path));
}

std::unique_ptr<TensorFile> TensorFile::Open(std::shared_ptr<const MappedFile> file) {
  const std::string path = file->path().string();
  const auto bytes = file->bytes();
  if (IsTorchArchive(bytes)) {
    return std::make_unique<MappedTensorFile>(std::move(file), ReadTorchArchive(bytes, path));
  }
  if (IsSafetensors(bytes)) {
    return std::make_unique<MappedTensorFile>(std::move(file),
                                              ParseSafetensorsHeader(bytes, bytes.size(), path));
  }
  std::string what = "is neither a safetensors file nor a torch.save archive";
  if (bytes.empty()) {
    what = "is empty";
  } else if (bytes[0] == 0x80) {
    what = "is a bare pickle of PyTorch before 1.6; load and save it again with a newer PyTorch";
  } else if (std::string_view(reinterpret_cast<const char*>(bytes.data()),
                              std::min<size_t>(bytes.size(), 40))
                 .starts_with("version https://git-lfs")) {
    what = "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`";
  }
  throw std::runtime_error(path + ": " + what);
}

std::shared_ptr<const TensorFile> OpenTensorFolder(const std::filesystem::path& folder,
                                                   const TensorFiles& opened) {
  for (const char* name : {"model.safetensors", "pytorch_model.bin"}) {
    const auto index = folder / (std::string(name) + ".index.json");
    if (std::filesystem::exists(index)) return std::make_shared<const ShardedFile>(index, opened);
    if (std::filesystem::exists(folder / name)) return OpenIn(folder, name, opened);
  }
  throw std::runtime_error(
      folder.string() +
      ": has no tensors (model.safetensors or pytorch_model.bin, alone or with "
      "an .index.json)");
}

}  // namespace llava
