#include "server/lifecycle/version_check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "model/checkpoint/manifest.h"
#include "model/digest/sha256.h"

namespace llava {
namespace {

constexpr size_t kPiece = 1 << 20;

absl::Status SystemError(const std::filesystem::path& path, int error) {
  const std::string message = absl::StrCat(path.string(), ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::UnavailableError(message);
}

// Sleeps, in slices short enough to be stopped, until `bytes` may have been read.
class Pace {
 public:
  explicit Pace(uint64_t bytes_per_second) : rate_(bytes_per_second) {}
  void Wait(uint64_t bytes, const std::function<bool()>& stop) {
    if (rate_ == 0) return;
    bytes_ += bytes;
    const auto due =
        begin_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                     static_cast<double>(bytes_) / static_cast<double>(rate_)));
    while (Clock::now() < due && !stop()) {
      std::this_thread::sleep_until(std::min(due, Clock::now() + std::chrono::milliseconds(20)));
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  const uint64_t rate_;
  const Clock::time_point begin_ = Clock::now();
  uint64_t bytes_ = 0;
};

absl::StatusOr<Sha256Digest> HashSlowly(const std::filesystem::path& path, Pace& pace,
                                        const std::function<bool()>& stop) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return SystemError(path, errno);
  Sha256 hash;
  std::vector<uint8_t> piece(kPiece);
  absl::Status status;
  while (status.ok()) {
    if (stop()) {
      status = absl::CancelledError("stopped while checking files");
      break;
    }
    const ssize_t count = read(file, piece.data(), piece.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) status = SystemError(path, errno);
    if (count <= 0) break;
    hash.Update(std::span<const uint8_t>(piece.data(), static_cast<size_t>(count)));
    pace.Wait(static_cast<uint64_t>(count), stop);
  }
  close(file);
  if (!status.ok()) return status;
  return hash.Finish();
}

}  // namespace

absl::Status CheckVersionFiles(const std::filesystem::path& folder, uint64_t bytes_per_second,
                               const std::function<bool()>& stop) {
  struct stat status {};
  const std::filesystem::path manifest_path = folder / "manifest.json";
  if (stat(manifest_path.c_str(), &status) != 0) return SystemError(manifest_path, errno);
  if (access(manifest_path.c_str(), R_OK) != 0) return SystemError(manifest_path, errno);
  Manifest manifest;
  try {
    manifest = Manifest::Read(folder);
  } catch (const std::exception& error) {
    return absl::DataLossError(error.what());
  }
  Pace pace(bytes_per_second);
  for (const auto& [name, listed] : manifest.files) {
    const std::filesystem::path path = folder / name;
    if (stat(path.c_str(), &status) != 0) return SystemError(path, errno);
    if (static_cast<uint64_t>(status.st_size) != listed.size_bytes) {
      return absl::DataLossError(absl::StrCat(path.string(), ": has ", status.st_size,
                                              " bytes, the manifest says ", listed.size_bytes));
    }
  }
  for (const auto& [name, listed] : manifest.files) {
    const auto digest = HashSlowly(folder / name, pace, stop);
    if (!digest.ok()) return digest.status();
    if (*digest != listed.sha256) {
      return absl::DataLossError(
          absl::StrCat((folder / name).string(), ": its SHA-256 is not that of the manifest"));
    }
  }
  return absl::OkStatus();
}

}  // namespace llava
