#include "server/gateway/image_files.h"

#include <system_error>

#include "absl/strings/str_cat.h"
#include "server/gateway/file_io.h"

namespace llava {

absl::StatusOr<ImageFiles> ImageFiles::Open(const std::filesystem::path& folder) {
  if (auto status = MakePrivateFolder(folder); !status.ok()) return status;
  return ImageFiles(folder);
}

absl::StatusOr<bool> ImageFiles::Write(const std::string& id, std::string_view bytes) {
  const auto path = folder_ / id;
  std::error_code error;
  if (std::filesystem::exists(path, error)) return false;
  if (auto status = WriteFileDurably(path, bytes); !status.ok()) return status;
  return true;
}

absl::StatusOr<std::string> ImageFiles::Read(const std::string& id) const {
  auto bytes = ReadFile(folder_ / id);
  if (bytes.ok() ? !bytes->empty() : !absl::IsNotFound(bytes.status())) return bytes;
  return absl::DataLossError(absl::StrCat("the file of picture ", id, " is gone from ",
                                          folder_.string(), "; send the picture again"));
}

absl::Status ImageFiles::Remove(const std::string& id) {
  std::error_code error;
  std::filesystem::remove(folder_ / id, error);
  if (error) return FileError("remove", folder_ / id, error.value());
  return absl::OkStatus();
}

absl::Status ImageFiles::Sweep(const std::set<std::string>& known) {
  std::error_code error;
  std::set<std::string> strays;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename().string();
    if (!known.contains(name)) strays.insert(name);
  }
  if (error) return FileError("list", folder_, error.value());
  for (const std::string& name : strays) {
    if (auto status = Remove(name); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace llava
