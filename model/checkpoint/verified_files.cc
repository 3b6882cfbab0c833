#include "model/checkpoint/verified_files.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "model/checkpoint/file_reader.h"
#include "model/checkpoint/finite.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Tells how far the reading is, ends it and slows it down.
class Pace {
 public:
  Pace(const fs::path& folder, const OpenOptions& options, uint64_t total)
      : folder_(folder), options_(options), total_(total) {}

  void CheckStop() const {
    if (options_.stop && options_.stop()) {
      throw OpenStopped(folder_.string() + ": reading it was stopped");
    }
  }
  void Advance(uint64_t bytes) {
    CheckStop();
    done_ += bytes;
    if (options_.progress) {
      options_.progress(total_ == 0 ? 1 : static_cast<double>(done_) / static_cast<double>(total_));
    }
    if (options_.bytes_per_second <= 0) return;
    const auto due =
        begin_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                     static_cast<double>(done_) / options_.bytes_per_second));
    for (auto now = Clock::now(); now < due; now = Clock::now()) {
      std::this_thread::sleep_for(
          std::min<Clock::duration>(due - now, std::chrono::milliseconds(20)));
      CheckStop();
    }
  }

 private:
  const fs::path& folder_;
  const OpenOptions& options_;
  const uint64_t total_;
  const Clock::time_point begin_ = Clock::now();
  uint64_t done_ = 0;
};

class Differences {
 public:
  explicit Differences(const fs::path& folder) : folder_(folder) {}
  void Add(const std::string& name, const std::string& what) {
    text_ += (text_.empty() ? "" : "; ") + name + " " + what;
  }
  void ThrowIfAny() const {
    if (text_.empty()) return;
    throw std::runtime_error(folder_.string() + ": is not what its manifest says: " + text_);
  }

 private:
  const fs::path& folder_;
  std::string text_;
};

}  // namespace

FilesInMemory VerifyFiles(const fs::path& folder, const Manifest& manifest,
                          const OpenOptions& options) {
  Differences differences(folder);
  uint64_t total = 0;
  for (const auto& [name, file] : manifest.files) {
    std::error_code error;
    const uint64_t size = fs::file_size(folder / name, error);
    if (error) {
      differences.Add(name, "cannot be read (" + error.message() + ")");
    } else if (size != file.size_bytes) {
      differences.Add(name, "has " + std::to_string(size) + " bytes, expected " +
                                std::to_string(file.size_bytes));
    }
    total += file.size_bytes;
  }
  differences.ThrowIfAny();

  FilesInMemory in_memory;
  std::map<std::string, uint64_t> not_finite;
  Pace pace(folder, options, total);
  for (const auto& [name, file] : manifest.files) {
    const fs::path path = folder / name;
    const bool tensors = path.extension() == ".safetensors";
    std::shared_ptr<MappedFile> memory;
    if (options.in_memory && tensors && name != kSelfTestFile) {
      memory = MappedFile::InMemory(path, file.size_bytes);
    }
    FileReader reader(path, file.size_bytes, memory ? memory->memory() : nullptr);
    Sha256 hash;
    FiniteCheck finite(file.size_bytes);
    for (;;) {
      const auto chunk = reader.Next([&pace] { pace.CheckStop(); });
      if (chunk.empty()) break;
      hash.Update(chunk);
      if (tensors) finite.Feed(chunk);
      pace.Advance(chunk.size());
    }
    if (hash.Finish() != file.sha256) differences.Add(name, "has another SHA-256");
    not_finite.insert(finite.counts().begin(), finite.counts().end());
    if (memory) in_memory.emplace(name, std::move(memory));
  }
  differences.ThrowIfAny();
  if (!not_finite.empty()) {
    throw std::runtime_error(folder.string() + ": " + DescribeNonFinite(not_finite));
  }
  return in_memory;
}

}  // namespace llava
