#include "server/lifecycle/lifecycle_options.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <exception>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/repository.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

std::optional<uint64_t> FirstNumber(const fs::path& file) {
  std::ifstream stream(file);
  uint64_t number = 0;
  if (stream >> number) return number;  // "max": no limit
  return std::nullopt;
}

// Of this process's control group and all above it.
uint64_t ControlGroupLimit() {
  uint64_t limit = std::numeric_limits<uint64_t>::max();
  std::ifstream stream("/proc/self/cgroup");
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with("0::/")) continue;
    const fs::path top("/sys/fs/cgroup");
    for (fs::path group = top / line.substr(4);; group = group.parent_path()) {
      limit = std::min(limit, FirstNumber(group / "memory.max").value_or(limit));
      if (group == top || !group.has_relative_path()) break;
    }
  }
  // The older hierarchy.
  return std::min(limit,
                  FirstNumber("/sys/fs/cgroup/memory/memory.limit_in_bytes").value_or(limit));
}

// The folder a --model means, without "." and a slash at the end.
fs::path Tidy(const std::string& text) {
  const fs::path whole = fs::absolute(text).lexically_normal();
  return whole.has_filename() ? whole : whole.parent_path();
}

absl::Status Foreign(const fs::path& folder, Manifest::Kind wanted) {
  return absl::NotFoundError(absl::StrCat(folder.string(), ": holds a ",
                                          wanted == Manifest::Kind::kTower
                                              ? "language model, not a tower"
                                              : "tower, not a language model"));
}

}  // namespace

std::chrono::milliseconds LoadLimit(std::chrono::milliseconds step_limit) {
  constexpr std::chrono::milliseconds kLeast = std::chrono::minutes(5);
  return step_limit.count() == 0 ? step_limit : std::max(4 * step_limit, kLeast);
}

uint64_t HostMemoryBudget() {
  const auto pages = static_cast<uint64_t>(std::max(0L, sysconf(_SC_PHYS_PAGES)));
  const auto page_bytes = static_cast<uint64_t>(std::max(0L, sysconf(_SC_PAGESIZE)));
  return std::min(pages * page_bytes, ControlGroupLimit()) / 10 * 9;
}

void LifecycleOptions::Declare(Settings& settings, Manifest::Kind kind) {
  const bool language = kind == Manifest::Kind::kLanguage;
  settings.Add("model", &model,
               absl::StrCat(language ? "Language model" : "Tower",
                            ": <root>/<name> of a repository (watched), <root>/<name>/<version>, "
                            "or any other checkpoint folder",
                            language ? " (llava-hf or original layout)"
                                     : " (CLIP, or LLaVA with a tower inside)"));
  settings.Add("repository", &repository,
               "Instead of --model: root of a model repository; all its models are served");
  settings.Add("models", &models, "Names, with commas: only these models of --repository");
  settings.Add("version-policy", &version_policy,
               "Versions to load: auto (labels once \"stable\" is set, else latest), latest, "
               "latest:N, labels, or numbers with commas");
  settings.Add("poll-interval", &poll_interval,
               "How often the repository is looked at beside what inotify tells; 0s = never");
  settings.AddBytes(
      "memory-budget", &memory_budget,
      "Memory that all versions may take together, keys and values included; 0 = nine "
      "tenths of the machine's memory (on GPUs: of what is free), used only to "
      "choose the swap mode");
  settings.AddChoice("swap-mode", &swap_mode,
                     "How a version replaces another; auto = by sizes: beside it, worker by "
                     "worker, or in its place",
                     {"auto", "side_by_side", "rolling", "in_place"});
  if (language) {
    settings.Add("swap-prewarm", &swap_prewarm,
                 "Recent conversations computed ahead for a new version before it is used", 0,
                 100'000);
  }
  settings.Add("load-threads", &load_threads, "Versions loaded at the same time", 1, 64);
  settings.AddBytes("load-rate", &load_rate,
                    "Bytes per second read while loading, 0 = as fast as it goes");
  settings.Add("retry-delay", &retry_delay,
               "Wait after a failed load, doubled each time; 0s = only when files change");
  settings.Add("retry-max-delay", &retry_max_delay, "Longest wait after failed loads");
  settings.AddChoice("admin-calls", &admin_calls,
                     "LoadModel, UnloadModel, SetLabel and Rollback of whoever reaches the port",
                     {"allow", "refuse"});
  settings.Check([this]() -> absl::Status {
    if (model.empty() && repository.empty()) {
      return absl::InvalidArgumentError("--model is missing (or --repository)");
    }
    if (!model.empty() && !repository.empty()) {
      return absl::InvalidArgumentError("--model and --repository exclude each other");
    }
    if (!models.empty() && repository.empty()) {
      return absl::InvalidArgumentError("--models needs --repository");
    }
    if (const auto policy = VersionPolicy::Parse(version_policy); !policy.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--version-policy: ", policy.status().message()));
    }
    if (retry_max_delay < retry_delay) {
      return absl::InvalidArgumentError("--retry-max-delay is less than --retry-delay");
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<ModelManager::Options> LifecycleOptions::Resolve(Manifest::Kind kind) const {
  ModelManager::Options options;
  const auto policy = VersionPolicy::Parse(version_policy);
  if (!policy.ok()) return policy.status();
  options.kind = kind;
  options.policy = *policy;
  options.swap_mode = ParseSwapMode(swap_mode);
  options.poll_interval = poll_interval;
  options.soft_budget = memory_budget == 0;
  options.memory_budget = memory_budget == 0 ? HostMemoryBudget() : memory_budget;
  options.load_threads = load_threads;
  options.load_bytes_per_second = load_rate;
  options.retry_delay = retry_delay;
  options.retry_max_delay = retry_max_delay;
  if (!repository.empty()) {
    options.root = repository;
    for (const absl::string_view name : absl::StrSplit(models, ',', absl::SkipEmpty())) {
      options.names.emplace(name);
    }
    return options;
  }

  options.must_start = true;
  const fs::path path = Tidy(model);
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat(path.string(), ": is not a folder"));
  }
  const bool published = fs::exists(path / "manifest.json", error);
  const bool checkpoint = published || fs::exists(path / "config.json", error) ||
                          fs::exists(path / "adapter_config.json", error);
  if (!checkpoint) {
    options.root = path.parent_path();
    options.names = {path.filename().string()};
    try {
      if (!ModelRepository(options.root).Versions(*options.names.begin()).empty()) return options;
    } catch (const std::exception& fault) {
      return absl::NotFoundError(fault.what());
    }
    return absl::NotFoundError(
        absl::StrCat(path.string(),
                     ": is no checkpoint: it has neither manifest.json nor config.json nor a "
                     "version folder"));
  }
  VersionRef fixed{path.filename().string(), 1, path};
  if (published) {
    try {
      const Manifest manifest = Manifest::Read(path);
      if (manifest.kind != kind) return Foreign(path, kind);
      fixed.name = manifest.name;
      fixed.version = manifest.version;
    } catch (const std::exception& fault) {
      return absl::NotFoundError(fault.what());
    }
    const fs::path folder = path.parent_path();
    if (path.filename().string() == absl::StrCat(fixed.version) &&
        folder.filename().string() == fixed.name) {
      options.root = folder.parent_path();
      options.names = {fixed.name};
      options.policy.kind = VersionPolicy::Kind::kVersions;
      options.policy.versions = {fixed.version};
      return options;
    }
  }
  options.fixed = fixed;
  return options;
}

}  // namespace llava
