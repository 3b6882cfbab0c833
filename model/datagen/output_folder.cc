#include "model/datagen/output_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "model/checkpoint/durable_file.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

constexpr char kUnfinished[] = ".unfinished.json";
constexpr char kFinished[] = "dataset.json";

void WriteJson(const fs::path& path, const nlohmann::ordered_json& json) {
  StagedFile file(path);
  file.Write(json.dump(2) + "\n");
  file.Commit();
}

// Holds at most what is made first: all that is there when a run is killed at once.
bool IsAsGoodAsEmpty(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    const bool ours = name == std::string(kUnfinished) + ".part" ||
                      (name == "images" && entry.is_directory() && fs::is_empty(entry.path()));
    if (!ours) return false;
  }
  return true;
}

// One call for all pictures, not a wait for the disk after each of thousands of pictures.
void SyncFileSystem(const fs::path& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool done = fd >= 0 && syncfs(fd) == 0;
  const int reason = errno;
  if (fd >= 0) close(fd);
  if (!done) {
    throw std::runtime_error(folder.string() +
                             " cannot be synchronised with the disk: " + std::strerror(reason));
  }
}

}  // namespace

OutputFolder::OutputFolder(fs::path folder, nlohmann::ordered_json settings, bool overwrite)
    : folder_(std::move(folder)), settings_(std::move(settings)) {
  if (fs::exists(folder_) && !fs::is_directory(folder_)) {
    throw FolderRefused(folder_.string() + " is not a folder");
  }
  if (fs::exists(folder_) && !IsAsGoodAsEmpty(folder_)) {
    if (overwrite) {
      Clear();
    } else if (HoldsUnfinished()) {
      resumed_ = true;
    } else {
      throw FolderRefused(folder_.string() +
                          " is not empty; name another folder, or pass --overwrite to replace the "
                          "data set in it");
    }
  }
  fs::create_directories(folder_);
  WriteJson(folder_ / kUnfinished, settings_);
  fs::create_directories(images());
}

void OutputFolder::Finish(const nlohmann::ordered_json& contents) {
  SyncFileSystem(folder_);
  WriteJson(folder_ / kFinished, {{"settings", settings_}, {"contents", contents}});
  fs::remove(folder_ / kUnfinished);
  SyncFileSystem(folder_);
}

bool OutputFolder::HoldsUnfinished() const {
  std::ifstream file(folder_ / kUnfinished);
  return file && nlohmann::ordered_json::parse(file, nullptr, false) == settings_;
}

void OutputFolder::Clear() const {
  if (!fs::exists(folder_ / kUnfinished) && !fs::exists(folder_ / kFinished)) {
    throw FolderRefused(folder_.string() +
                        " holds no data set of llava-datagen; --overwrite replaces nothing else");
  }
  // The marker goes last: what was begun to be removed stays recognisable.
  WriteJson(folder_ / kUnfinished, nullptr);
  for (const char* name : {kFinished, "captions.json", "instances.json", "stage1.json",
                           "stage2.json", "problems.json", "pid_splits.json"}) {
    fs::remove(folder_ / name);
  }
  fs::remove_all(images());
}

}  // namespace llava
