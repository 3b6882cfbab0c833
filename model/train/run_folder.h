#pragma once

// The folder of a training run: its recipe, the log of its steps, its saved states.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace llava {

// The settings of a recipe that must stay the same in a folder. Not among them is "skip_bad":
// without it no record was left out so far; with it, those that turn out bad later are. Nor what
// says by which devices and threads and in how much memory the same is computed, and how often it
// is saved.
nlohmann::json FixedSettings(const nlohmann::ordered_json& recipe);

// Says which checkpoints the run began with: beside a state of it, "model" and "tower" need not be
// spelled alike, as their digests are compared (run_start.h).
inline constexpr const char* kRunStartFile = "start.json";

// Step of the newest state in a run's folder, nothing if there is none.
std::optional<int64_t> NewestStateIn(const std::filesystem::path& run_folder);

// Holds a lock on the folder while it lives, so that two processes cannot train in one. One thread.
// Throws std::runtime_error naming the file that cannot be written or read.
class RunFolder {
 public:
  // Makes the folder, or goes on in that of an earlier run with the same FixedSettings (but for
  // those that kRunStartFile guards; recipe.json keeps these as they were). Settings that were not
  // there when the run began have their `defaults`. Throws std::invalid_argument if the recipe
  // there differs (listing how) or another process trains there.
  RunFolder(std::filesystem::path path, const nlohmann::ordered_json& recipe,
            const nlohmann::ordered_json& defaults = nlohmann::ordered_json::object());
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  // Tensors after `step` steps: one file, written beside the others and renamed, so that a crash or
  // a full disk leaves the older ones whole. Then removes all but the newest `keep` states.
  void SaveState(int64_t step, const std::map<std::string, at::Tensor>& tensors, int64_t keep);
  std::optional<int64_t> NewestState() const { return NewestStateIn(path_); }
  // On the CPU, read from the file as they are used: to be copied from, not written to.
  std::map<std::string, at::Tensor> LoadState(int64_t step) const;

  // metrics.jsonl: appends one line; Rewind drops lines of later steps than `step` (and a torn
  // one).
  void Log(const nlohmann::ordered_json& line);
  void Rewind(int64_t step);
  // An evaluation is a key of its step's line, the last one; it is on disk when this returns.
  void LogEvaluation(int64_t step, const nlohmann::ordered_json& figures);
  bool HasEvaluation(int64_t step) const;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path StatePath(int64_t step) const;
  // The lines of metrics.jsonl, the last one perhaps torn.
  std::vector<std::string> Lines() const;

  std::filesystem::path path_;
  int lock_ = -1;
  std::FILE* log_ = nullptr;
};

}  // namespace llava
