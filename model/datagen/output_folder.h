#pragma once

// The folder of a data set: new, begun by an earlier run of the same command, or refused.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace llava {

// The folder holds something that must not be lost.
class FolderRefused : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Owns `folder` while a data set is made: .unfinished.json with the settings stands in it until
// Finish puts dataset.json in its place. One thread.
class OutputFolder {
 public:
  // `settings`: all that decides what will be written. Makes the folder with its images/. Resumes
  // if an unfinished data set of equal settings is in it. Throws FolderRefused if anything else is
  // there; with `overwrite`, which removes an older data set, only if that is none of this
  // program, and std::filesystem errors.
  OutputFolder(std::filesystem::path folder, nlohmann::ordered_json settings,
               bool overwrite = false);

  // Makes all files durable and writes dataset.json: the settings and `contents`.
  void Finish(const nlohmann::ordered_json& contents);

  bool resumed() const { return resumed_; }
  const std::filesystem::path& path() const { return folder_; }
  std::filesystem::path images() const { return folder_ / "images"; }

 private:
  bool HoldsUnfinished() const;
  void Clear() const;

  std::filesystem::path folder_;
  nlohmann::ordered_json settings_;
  bool resumed_ = false;
};

}  // namespace llava
