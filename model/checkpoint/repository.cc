#include "model/checkpoint/repository.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/file_lock.h"
#include "model/checkpoint/json_object.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/version_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kMarksFile = "labels.json";
constexpr const char* kLockFile = ".lock";
constexpr const char* kRemovedPrefix = ".gc-";
constexpr const char* kStable = "stable";
constexpr int kMarksFormatVersion = 1;
constexpr size_t kMostHistory = 100;  // of a label; more is of no use and grows the file
constexpr auto kLockPatience = std::chrono::seconds(10);
constexpr auto kDraftLife = std::chrono::hours(24);

// Never a number: "<name>:<label>" and "<name>:<version>" are told apart.
void CheckLabel(const std::string& label) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  const bool number = label.find_first_not_of("0123456789") == std::string::npos;
  if (number || label.size() > 64 || label[0] == '.' || label[0] == '-' ||
      label.find_first_not_of(kAllowed) != std::string::npos) {
    throw std::invalid_argument("\"" + label +
                                "\" is no label: 1 to 64 letters, digits, '.', '_' and '-', not "
                                "only digits, the first one a letter, a digit or '_'");
  }
}

uint64_t ToVersion(const JsonObject& where, const std::string& key, const json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() == 0) {
    where.Fail(key, "holds " + value.dump() + ", not a version");
  }
  return value.get<uint64_t>();
}

std::vector<uint64_t> ToVersions(const JsonObject& where, const std::string& key) {
  const json& list = where.At(key);
  if (!list.is_array()) where.Fail(key, "is not a list of versions");
  std::vector<uint64_t> versions;
  for (const json& value : list) versions.push_back(ToVersion(where, key, value));
  return versions;
}

ModelMarks ReadMarks(const fs::path& model_folder) {
  const fs::path path = model_folder / kMarksFile;
  std::error_code error;
  if (!fs::exists(path, error) && !error) return {};
  const JsonObject object = JsonObject::Read(path);
  if (object.Int("format_version") != kMarksFormatVersion) {
    object.Fail("format_version", "is " + std::to_string(object.Int("format_version")) +
                                      "; this program reads " +
                                      std::to_string(kMarksFormatVersion));
  }
  ModelMarks marks;
  const JsonObject labels = object.Object("labels"), history = object.Object("history");
  for (const auto& [label, version] : labels.value().items()) {
    marks.labels[label] = ToVersion(labels, label, version);
  }
  for (const auto& [label, versions] : history.value().items()) {
    marks.history[label] = ToVersions(history, label);
  }
  const std::vector<uint64_t> pinned = ToVersions(object, "pinned");
  marks.pinned = {pinned.begin(), pinned.end()};
  return marks;
}

void WriteMarks(const fs::path& model_folder, const ModelMarks& marks) {
  const json object = {{"format_version", kMarksFormatVersion},
                       {"labels", marks.labels},
                       {"history", marks.history},
                       {"pinned", marks.pinned}};
  WriteDurably(model_folder / kMarksFile, object.dump(2) + "\n");
}

void CheckThere(const fs::path& model_folder, uint64_t version) {
  const std::vector<uint64_t> versions = CompleteVersions(model_folder);
  if (std::binary_search(versions.begin(), versions.end(), version)) return;
  throw std::invalid_argument(model_folder.string() + ": has no version " +
                              std::to_string(version));
}

FileLock Lock(const fs::path& model_folder) {
  if (!fs::is_directory(model_folder)) {
    throw std::invalid_argument(model_folder.string() + ": there is no such model");
  }
  return FileLock(model_folder / kLockFile, kLockPatience);
}

// Nothing if somebody has removed the version. Throws std::runtime_error if it cannot be read.
std::optional<Manifest> ManifestUnlessGone(const fs::path& version_folder) {
  try {
    return Manifest::Read(version_folder);
  } catch (const std::runtime_error&) {
    if (HasManifest(version_folder)) throw;
    return std::nullopt;
  }
}

fs::file_time_type LastTouched(const fs::path& path) {
  std::error_code error;
  fs::file_time_type last = fs::last_write_time(path, error);
  if (error) return fs::file_time_type::clock::now();
  for (fs::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;
    const auto time = entry->last_write_time(gone);
    if (!gone) last = std::max(last, time);
  }
  return last;
}

// What somebody who was killed has left. The age counts too, for file systems where locks do not
// reach other hosts.
bool IsAbandoned(const fs::path& path) {
  const std::string name = path.filename().string();
  if (name.starts_with(kRemovedPrefix)) return true;
  const bool draft = name.starts_with(kDraftPrefix);
  if (!draft && !name.starts_with(std::string(kMarksFile) + ".tmp-")) return false;
  if (fs::file_time_type::clock::now() - LastTouched(path) < kDraftLife) return false;
  const bool is_lock = name.ends_with(kDraftLockSuffix);
  return !draft || !FileLock::IsHeld(is_lock ? path : fs::path(path.string() + kDraftLockSuffix));
}

void Remove(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error && fs::exists(path)) {
    throw std::runtime_error(path.string() + ": cannot remove: " + error.message());
  }
}

}  // namespace

fs::path ModelRepository::Folder(const std::string& name) const {
  CheckModelName(name);
  return root_ / name;
}

fs::path ModelRepository::Folder(const std::string& name, uint64_t version) const {
  return Folder(name) / std::to_string(version);
}

std::vector<std::string> ModelRepository::Models() const {
  std::vector<std::string> models;
  for (const std::string& name : NamesIn(root_)) {
    try {
      CheckModelName(name);
    } catch (const std::invalid_argument&) {
      continue;  // "lost+found", ".cache"
    }
    bool there = true;  // one that cannot be listed says so when it is asked for its versions
    try {
      there = NewestVersion(root_ / name).has_value();
    } catch (const std::runtime_error&) {
    }
    if (there) models.push_back(name);
  }
  return models;
}

std::vector<uint64_t> ModelRepository::Versions(const std::string& name) const {
  return CompleteVersions(Folder(name));
}

ModelMarks ModelRepository::Marks(const std::string& name) const { return ReadMarks(Folder(name)); }

uint64_t ModelRepository::SetLabel(const std::string& name, const std::string& label,
                                   uint64_t version) {
  CheckLabel(label);
  const fs::path folder = Folder(name);
  const FileLock lock = Lock(folder);
  if (version != 0) CheckThere(folder, version);
  ModelMarks marks = ReadMarks(folder);
  const auto found = marks.labels.find(label);
  const uint64_t before = found == marks.labels.end() ? 0 : found->second;
  if (before == version) return before;
  if (before != 0) {
    std::vector<uint64_t>& history = marks.history[label];
    history.push_back(before);
    if (history.size() > kMostHistory) history.erase(history.begin());
  }
  if (version == 0) {
    marks.labels.erase(label);
  } else {
    marks.labels[label] = version;
  }
  WriteMarks(folder, marks);
  return before;
}

uint64_t ModelRepository::Rollback(const std::string& name) {
  const fs::path folder = Folder(name);
  const FileLock lock = Lock(folder);
  const std::vector<uint64_t> versions = CompleteVersions(folder);
  ModelMarks marks = ReadMarks(folder);
  std::vector<uint64_t>& history = marks.history[kStable];
  const auto current = marks.labels.find(kStable);
  while (!history.empty()) {
    const uint64_t version = history.back();
    history.pop_back();
    const bool other = current == marks.labels.end() || current->second != version;
    if (!other || !std::binary_search(versions.begin(), versions.end(), version)) continue;
    marks.labels[kStable] = version;
    WriteMarks(folder, marks);
    return version;
  }
  throw std::invalid_argument(folder.string() +
                              ": no other version was stable before and is still there");
}

void ModelRepository::Pin(const std::string& name, uint64_t version, bool pinned) {
  const fs::path folder = Folder(name);
  const FileLock lock = Lock(folder);
  if (pinned) CheckThere(folder, version);
  ModelMarks marks = ReadMarks(folder);
  if (pinned == marks.pinned.contains(version)) return;
  if (pinned) {
    marks.pinned.insert(version);
  } else {
    marks.pinned.erase(version);
  }
  WriteMarks(folder, marks);
}

std::vector<uint64_t> ModelRepository::Gc(const std::string& name, int keep, bool dry_run) {
  // Without the newest, its number would be given again.
  if (keep < 1) throw std::invalid_argument("at least the newest version is kept");
  const fs::path folder = Folder(name);
  std::vector<uint64_t> doomed;
  std::vector<fs::path> rubbish;
  {
    const FileLock lock = Lock(folder);
    ModelMarks marks = ReadMarks(folder);
    std::set<uint64_t> kept = marks.pinned;
    for (const auto& [label, version] : marks.labels) {
      if (!label.starts_with(kRejectedPrefix)) kept.insert(version);
    }
    const std::vector<uint64_t> versions = CompleteVersions(folder);
    for (size_t i = 0; i < versions.size(); ++i) {
      if (i + static_cast<size_t>(keep) >= versions.size()) kept.insert(versions[i]);
    }
    // Towers that language models which stay were trained with.
    std::set<Sha256Digest> needed;
    std::map<uint64_t, Manifest> own;  // of the versions of `name`
    std::string unread;                // why one of all versions does not tell what it is and needs
    for (const std::string& model : Models()) {
      for (const uint64_t version : CompleteVersions(root_ / model)) {
        try {
          const auto manifest = ManifestUnlessGone(Folder(model, version));
          const bool stays = model != name || kept.contains(version);
          if (manifest && manifest->kind == Manifest::Kind::kLanguage && stays) {
            needed.insert(manifest->tower_digest);
          }
          if (manifest && model == name) own.emplace(version, *manifest);
        } catch (const std::runtime_error& error) {
          unread = error.what();
        }
      }
    }
    for (const uint64_t version : versions) {
      const auto manifest = own.find(version);
      if (kept.contains(version) || manifest == own.end()) continue;
      const bool tower = manifest->second.kind == Manifest::Kind::kTower;
      if (tower && !unread.empty()) {
        throw std::runtime_error(
            Folder(name, version).string() +
            ": nothing is removed: a version that cannot be read may need this tower (" + unread +
            "). Mend or remove that version, or pin this one");
      }
      if (!tower || !needed.contains(manifest->second.tower_digest)) doomed.push_back(version);
    }
    if (dry_run) return doomed;
    for (const uint64_t version : doomed) {
      const fs::path to = folder / (kRemovedPrefix + std::to_string(version) + "-" + RandomName());
      std::error_code error;
      fs::rename(Folder(name, version), to, error);
      if (error) {
        throw std::runtime_error(Folder(name, version).string() +
                                 ": cannot remove: " + error.message());
      }
    }
    if (!doomed.empty()) SyncFolder(folder);
    const auto gone = [&doomed](const auto& label) {
      return std::binary_search(doomed.begin(), doomed.end(), label.second);
    };
    if (std::erase_if(marks.labels, gone) > 0) WriteMarks(folder, marks);
    for (const std::string& entry : NamesIn(folder)) {
      if (IsAbandoned(folder / entry)) rubbish.push_back(folder / entry);
    }
  }
  for (const fs::path& path : rubbish) Remove(path);
  return doomed;
}

}  // namespace llava
