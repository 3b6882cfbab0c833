#pragma once

// Which versions of a model should be loaded. Pure functions: no disk, no clock, no threads.

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint/repository.h"

namespace llava {

// One model of the repository as a scan saw it.
struct RepositoryModel {
  // Complete versions, each with a mark of its files (names, sizes, times): another mark = somebody
  // changed them.
  std::map<uint64_t, std::string> versions;
  ModelMarks marks;

  bool operator==(const RepositoryModel&) const;
};
using RepositorySnapshot = std::map<std::string, RepositoryModel>;

// How versions are chosen, as told by --version-policy:
//   auto        `labels` for a model whose label "stable" is set, else `latest`
//   latest[:N]  the N (1) newest
//   labels      every version that has a label
//   V[,V...]    exactly these
struct VersionPolicy {
  enum class Kind { kAuto, kLatest, kLabels, kVersions };

  Kind kind = Kind::kAuto;
  int count = 1;                // kLatest
  std::set<uint64_t> versions;  // kVersions

  // INVALID_ARGUMENT tells what there is.
  static absl::StatusOr<VersionPolicy> Parse(const std::string& text);
  std::string ToString() const;
};

// What operators said with LoadModel and UnloadModel. It holds until the policy's own choice for
// the model changes (a version is published or deleted, a label moves): then the policy rules
// again.
struct VersionWishes {
  std::set<uint64_t> load, unload;
};

// A choice; the most important version stands first: it is loaded first.
struct VersionChoice {
  std::vector<uint64_t> targets;  // what the policy asks for
  std::vector<uint64_t> wanted;   // targets, stand-ins for those that failed, wishes
};

// `failed`: versions whose last load failed and whose files have not changed since. Each failed
// target of `latest` is stood in for by the next older version, a failed "stable" by the last one
// that was stable before: a broken publication takes nothing away, not even after a restart.
// Labels of versions that are not in the repository ask for nothing. A label "rejected-<version>"
// (a guard's verdict over a canary) is no reason to load; `latest` and stand-ins pass over such
// versions as long as there are others.
VersionChoice ChooseVersions(const VersionPolicy& policy, const RepositoryModel& model,
                             const std::set<uint64_t>& failed, const VersionWishes& wishes);

}  // namespace llava
