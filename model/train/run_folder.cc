#include "model/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/tensor_file.h"
#include "model/text/json_text.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::string_view kStatePrefix = "state-", kStateSuffix = ".safetensors";

[[noreturn]] void FailFile(const std::filesystem::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what + ": " + std::strerror(errno));
}

Json ReadRecipe(const std::filesystem::path& file) {
  try {
    return ParseJson<Json>(ReadSmallFile(file));
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(file.string() + ": " + error.what());
  }
}

// Adds what `recipe` lacks of the defaults.
void Fill(Json& recipe, const Json& defaults) {
  if (!recipe.is_object()) return;
  for (const auto& [key, value] : defaults.items()) {
    if (!recipe.contains(key)) {
      recipe[key] = value;
    } else if (value.is_object()) {
      Fill(recipe[key], value);
    }
  }
}

// Of a line of metrics.jsonl; INT64_MAX if it is torn.
int64_t StepOf(const std::string& line) {
  const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  return entry.is_object() ? entry.value("step", INT64_MAX) : INT64_MAX;
}

std::map<int64_t, std::filesystem::path> StatesIn(const std::filesystem::path& folder) {
  std::map<int64_t, std::filesystem::path> states;
  if (!std::filesystem::exists(folder)) return states;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kStatePrefix) || !name.ends_with(kStateSuffix)) continue;
    int64_t step = 0;
    const char* begin = name.data() + kStatePrefix.size();
    const char* end = name.data() + name.size() - kStateSuffix.size();
    const auto [rest, error] = std::from_chars(begin, end, step);
    if (error == std::errc() && rest == end) states.emplace(step, entry.path());
  }
  return states;
}

// Whose digests kRunStartFile holds.
constexpr const char* kGuarded[] = {"model", "tower"};

// What must be the same in this folder. Digests are compared where the run goes on from a state.
nlohmann::json FixedHere(const std::filesystem::path& folder, const Json& recipe) {
  nlohmann::json fixed = FixedSettings(recipe);
  if (fixed.is_object() && std::filesystem::exists(folder / kRunStartFile) &&
      NewestStateIn(folder)) {
    for (const char* guarded : kGuarded) fixed.erase(guarded);
  }
  return fixed;
}

// `recipe` with the guarded settings as the run began: those given now may yet be refused.
Json AsBegun(const Json& stored, Json recipe) {
  for (const char* guarded : kGuarded) {
    if (stored.contains(guarded) && recipe.contains(guarded)) recipe[guarded] = stored[guarded];
  }
  return recipe;
}

// How two recipes differ, setting by setting.
std::string Differences(const nlohmann::json& before, const nlohmann::json& now) {
  const nlohmann::json old_flat = before.flatten(), new_flat = now.flatten();
  std::string text;
  for (const auto& [key, value] : old_flat.items()) {
    if (!new_flat.contains(key)) {
      text += "\n  " + key + ": was " + value.dump() + ", now missing";
    } else if (new_flat[key] != value) {
      text += "\n  " + key + ": was " + value.dump() + ", now " + new_flat[key].dump();
    }
  }
  for (const auto& [key, value] : new_flat.items()) {
    if (!old_flat.contains(key)) text += "\n  " + key + ": was missing, now " + value.dump();
  }
  return text;
}

}  // namespace

nlohmann::json FixedSettings(const Json& recipe) {
  nlohmann::json fixed = recipe;
  if (!fixed.is_object()) return fixed;
  for (const char* free : {"skip_bad", "device", "offload", "threads", "loader_threads",
                           "gradient_checkpointing", "save_every", "keep_states"}) {
    fixed.erase(free);
  }
  return fixed;
}

std::optional<int64_t> NewestStateIn(const std::filesystem::path& run_folder) {
  const auto states = StatesIn(run_folder);
  if (states.empty()) return std::nullopt;
  return states.rbegin()->first;
}

RunFolder::RunFolder(std::filesystem::path path, const Json& recipe, const Json& defaults)
    : path_(std::move(path)) {
  std::filesystem::create_directories(path_);
  const std::filesystem::path lock = path_ / ".lock";
  lock_ = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) FailFile(lock, "cannot be made");
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    close(lock_);
    throw std::invalid_argument(path_.string() + ": another process trains in this folder");
  }
  const std::filesystem::path file = path_ / "recipe.json";
  try {
    if (std::filesystem::exists(file)) {
      const Json stored = ReadRecipe(file);
      Json before = stored;
      Fill(before, defaults);
      const nlohmann::json then = FixedHere(path_, before), now = FixedHere(path_, recipe);
      if (then != now) {
        throw std::invalid_argument(path_.string() +
                                    ": a run of another recipe is here; choose another folder, or "
                                    "give the same settings to go on. Differences:" +
                                    Differences(then, now));
      }
      const Json kept = AsBegun(stored, recipe);
      if (nlohmann::json(stored) != nlohmann::json(kept)) {
        WriteDurably(file, kept.dump(2) + "\n");
      }
    } else {
      WriteDurably(file, recipe.dump(2) + "\n");
    }
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      // What a killed process left half-written.
      if (entry.path().filename().string().find(".tmp-") != std::string::npos) {
        std::filesystem::remove_all(entry.path());
      }
    }
  } catch (...) {
    close(lock_);
    throw;
  }
}

RunFolder::~RunFolder() {
  if (log_) std::fclose(log_);
  close(lock_);
}

std::filesystem::path RunFolder::StatePath(int64_t step) const {
  char name[40];
  std::snprintf(name, sizeof(name), "state-%08" PRId64 ".safetensors", step);
  return path_ / name;
}

void RunFolder::SaveState(int64_t step, const std::map<std::string, at::Tensor>& tensors,
                          int64_t keep) {
  if (log_ && fsync(fileno(log_)) != 0) FailFile(path_ / "metrics.jsonl", "cannot be written");
  SaveSafetensors(StatePath(step), tensors, {{"step", std::to_string(step)}});
  auto states = StatesIn(path_);
  while (static_cast<int64_t>(states.size()) > keep) {
    std::filesystem::remove(states.begin()->second);
    states.erase(states.begin());
  }
}

std::map<std::string, at::Tensor> RunFolder::LoadState(int64_t step) const {
  const auto file = TensorFile::Open(StatePath(step));
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, info] : file->tensors()) tensors.emplace(name, file->Get(name));
  return tensors;
}

void RunFolder::Log(const Json& line) {
  const std::filesystem::path file = path_ / "metrics.jsonl";
  if (!log_) log_ = std::fopen(file.c_str(), "ae");
  const std::string text = line.dump() + "\n";
  if (!log_ || std::fwrite(text.data(), 1, text.size(), log_) != text.size() ||
      std::fflush(log_) != 0) {
    FailFile(file, "cannot be written");
  }
}

std::vector<std::string> RunFolder::Lines() const {
  std::ifstream in(path_ / "metrics.jsonl");
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

void RunFolder::Rewind(int64_t step) {
  if (log_) std::fclose(std::exchange(log_, nullptr));
  std::string kept;
  bool dropped = false;
  for (const std::string& line : Lines()) {
    if (StepOf(line) <= step) {
      kept += line + "\n";
    } else {
      dropped = true;
    }
  }
  if (dropped) WriteDurably(path_ / "metrics.jsonl", kept);
}

void RunFolder::LogEvaluation(int64_t step, const Json& figures) {
  if (log_) std::fclose(std::exchange(log_, nullptr));
  std::vector<std::string> lines = Lines();
  Json line = {{"step", step}};
  if (!lines.empty() && StepOf(lines.back()) == step) {
    line = Json::parse(lines.back());
    lines.pop_back();
  }
  line["evaluation"] = figures;
  std::string content;
  for (const std::string& earlier : lines) content += earlier + "\n";
  WriteDurably(path_ / "metrics.jsonl", content + line.dump() + "\n");
}

bool RunFolder::HasEvaluation(int64_t step) const {
  const std::vector<std::string> lines = Lines();
  if (lines.empty() || StepOf(lines.back()) != step) return false;
  return Json::parse(lines.back()).contains("evaluation");
}

}  // namespace llava
