#pragma once

// Picture files of the gateway, named by their content: <folder>/<SHA-256 in hex>.

#include <filesystem>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace llava {

// One thread. Ids are 64 hex digits; the caller has checked them.
class ImageFiles {
 public:
  // Makes the folder.
  static absl::StatusOr<ImageFiles> Open(const std::filesystem::path& folder);

  // Durable when it returns: temporary file, fsync, rename, fsync of the folder. False: it was
  // there already.
  absl::StatusOr<bool> Write(const std::string& id, std::string_view bytes);
  // DATA_LOSS if the file is gone; other errors are those of the system, which may pass.
  absl::StatusOr<std::string> Read(const std::string& id) const;
  absl::Status Remove(const std::string& id);
  // Removes files that `known` does not name: left by a crash between file and database.
  absl::Status Sweep(const std::set<std::string>& known);

 private:
  explicit ImageFiles(std::filesystem::path folder) : folder_(std::move(folder)) {}

  std::filesystem::path folder_;
};

}  // namespace llava
