#pragma once

// The model repository as a whole: <root>/<name>/<version>/ and what is said about versions of a
// model in <root>/<name>/labels.json. Format: docs/formats.md. Needs no LibTorch.

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace llava {

// Labels that begin so tell that a version was tried and turned down ("rejected-7"): they keep
// nobody from removing it.
inline constexpr const char* kRejectedPrefix = "rejected-";

// What people (or a guard) said about a model's versions. Empty without labels.json.
struct ModelMarks {
  std::map<std::string, uint64_t> labels;                // "stable", "canary", ... -> version
  std::map<std::string, std::vector<uint64_t>> history;  // earlier versions of a label, latest last
  std::set<uint64_t> pinned;                             // never removed by Gc
};

// A repository folder, perhaps shared by several hosts and writers. Every change of marks is one
// atomic rename of labels.json under a lock file; readers need no lock. Thread-safe (no state).
// Unless said otherwise throws std::runtime_error naming the path, and std::invalid_argument for a
// bad name or label or a version that is not there.
class ModelRepository {
 public:
  explicit ModelRepository(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path Folder(const std::string& name) const;
  std::filesystem::path Folder(const std::string& name, uint64_t version) const;

  // Models that have a version, or whose folder cannot be listed (Versions tells why), in order of
  // names; empty if there is no root. Folders that can be no model are not looked into.
  std::vector<std::string> Models() const;
  // Complete versions (a manifest is there), ascending; empty if there is no such model. One that
  // may not be read is there too: opening it tells why it cannot be.
  std::vector<uint64_t> Versions(const std::string& name) const;

  // As they were written: a label's version may be gone.
  ModelMarks Marks(const std::string& name) const;
  // Points `label` at a version, 0 removes it. Returns the version it pointed at before, 0 = none.
  // Labels are words as model names are, at most 64 characters, not digits alone.
  uint64_t SetLabel(const std::string& name, const std::string& label, uint64_t version);
  // Points "stable" back at the version that had it before and is still there; returns that. Again:
  // one further back.
  uint64_t Rollback(const std::string& name);
  void Pin(const std::string& name, uint64_t version, bool pinned);

  // Versions that may go: neither labelled (other than as rejected), pinned, nor among the `keep`
  // newest (at least 1: no number is given twice), nor needed as a tower by a language model of
  // this repository that stays; what cannot be read stays. Removes them unless `dry_run` (each
  // becomes invisible at once, then its files go), and what killed writers left more than a day
  // ago; never the draft of one that lives. Throws std::runtime_error, before anything is removed,
  // if a tower would go while a version of the repository cannot be read: that may need it.
  std::vector<uint64_t> Gc(const std::string& name, int keep, bool dry_run);

 private:
  const std::filesystem::path root_;
};

}  // namespace llava
