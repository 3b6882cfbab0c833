#include "model/checkpoint/verified_files.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "model/checkpoint/file_checker.h"
#include "model/checkpoint/mapped_file.h"
#include "model/checkpoint/safetensors.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

void CheckSizes(const fs::path& folder, const Manifest& manifest) {
  std::string differences;
  for (const auto& [name, file] : manifest.files) {
    std::error_code error;
    const uint64_t size = fs::file_size(folder / name, error);
    std::string what;
    if (error) {
      what = "cannot be read (" + error.message() + ")";
    } else if (size != file.size_bytes) {
      what = "has " + std::to_string(size) + " bytes, expected " + std::to_string(file.size_bytes);
    }
    if (!what.empty()) differences += (differences.empty() ? "" : "; ") + name + " " + what;
  }
  if (differences.empty()) return;
  throw std::runtime_error(folder.string() + ": is not what its manifest says: " + differences);
}

// As far as it can be read; who checks the bytes tells why not.
std::vector<uint8_t> ReadHeader(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> head;
  for (uint64_t size = SafetensorsHeaderBytes(head); head.size() < size;
       size = SafetensorsHeaderBytes(head)) {
    const size_t had = head.size();
    head.resize(size);
    file.read(reinterpret_cast<char*>(head.data() + had), static_cast<std::streamsize>(size - had));
    head.resize(had + static_cast<size_t>(file.gcount()));
    if (head.size() < size) break;
  }
  return head;
}

// Tensors of a file that is being checked.
class AwaitedFile : public MappedTensorFile {
 public:
  AwaitedFile(std::shared_ptr<FileChecker> checker, size_t number, const FileChecker::File& file)
      : MappedTensorFile(file.mapped, ParseSafetensorsHeader(file.head, file.size_bytes,
                                                             file.mapped->path().string())),
        checker_(std::move(checker)),
        number_(number) {}

  at::Tensor Get(const std::string& name) const override {
    const MappedTensor& place = Place(name);
    return ViewMapped(checker_->Await(number_), place);
  }
  void Release(const std::string& name) const override {
    const auto info = tensors().find(name);
    if (info == tensors().end()) return;
    MappedTensorFile::Release(name);  // where they come from later
    checker_->Released(number_, info->second.bytes());
  }
  void Finish() const override { checker_->Finish(); }

 private:
  const std::shared_ptr<FileChecker> checker_;
  const size_t number_;
};

}  // namespace

TensorFiles VerifyFiles(const fs::path& folder, const Manifest& manifest,
                        const OpenOptions& options) {
  CheckSizes(folder, manifest);
  std::vector<FileChecker::File> small, weights;
  for (const auto& [name, listed] : manifest.files) {
    FileChecker::File file{name, listed.size_bytes, listed.sha256};
    const fs::path path = folder / name;
    if (options.in_memory && path.extension() == ".safetensors" && name != kSelfTestFile) {
      file.mapped = std::make_shared<const MappedFile>(path);
      file.head = ReadHeader(path);
      weights.push_back(std::move(file));
    } else {
      small.push_back(std::move(file));
    }
  }
  std::vector<FileChecker::File> files = small;
  files.insert(files.end(), weights.begin(), weights.end());
  const auto checker = std::make_shared<FileChecker>(folder, std::move(files), options);
  if (weights.empty()) {
    checker->Finish();
    return {};
  }
  for (size_t i = 0; i < small.size(); ++i) checker->Await(i);
  TensorFiles opened;
  try {
    for (size_t i = 0; i < weights.size(); ++i) {
      opened[weights[i].name] =
          std::make_shared<const AwaitedFile>(checker, small.size() + i, weights[i]);
    }
  } catch (const std::runtime_error&) {
    checker->Finish();  // a header that makes no sense: it may be damaged
    throw;
  }
  return opened;
}

}  // namespace llava
