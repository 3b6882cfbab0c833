#include "server/lifecycle/policy.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace llava {
namespace {

constexpr char kStable[] = "stable";
constexpr char kCanary[] = "canary";
// A guard's verdict over a canary: "rejected-<version>".
constexpr char kRejected[] = "rejected-";

std::optional<uint64_t> ParsePositive(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number == 0) return std::nullopt;
  return number;
}

bool IsRejection(const std::string& label) { return absl::StartsWith(label, kRejected); }

std::set<uint64_t> Rejected(const RepositoryModel& model) {
  std::set<uint64_t> rejected;
  for (const auto& [label, version] : model.marks.labels) {
    if (IsRejection(label)) rejected.insert(version);
  }
  return rejected;
}

void AddOnce(std::vector<uint64_t>& list, uint64_t version) {
  if (std::find(list.begin(), list.end(), version) == list.end()) list.push_back(version);
}

// The version that is stable, or was so last and can be had.
std::optional<uint64_t> LastStable(const RepositoryModel& model, const std::set<uint64_t>& failed,
                                   bool current) {
  const auto usable = [&](uint64_t version) {
    return model.versions.contains(version) && !failed.contains(version);
  };
  const auto label = model.marks.labels.find(kStable);
  if (label == model.marks.labels.end()) return std::nullopt;
  if (current && usable(label->second)) return label->second;
  const auto history = model.marks.history.find(kStable);
  if (history == model.marks.history.end()) return std::nullopt;
  const auto& earlier = history->second;
  const std::set<uint64_t> rejected = Rejected(model);
  const auto found = std::find_if(earlier.rbegin(), earlier.rend(), [&](uint64_t version) {
    return version != label->second && usable(version) && !rejected.contains(version);
  });
  if (found == earlier.rend()) return std::nullopt;
  return *found;
}

void ChooseLatest(int count, const RepositoryModel& model, const std::set<uint64_t>& failed,
                  const VersionWishes& wishes, VersionChoice& choice) {
  const std::set<uint64_t> rejected = Rejected(model);
  const bool others = std::any_of(model.versions.begin(), model.versions.end(),
                                  [&](const auto& v) { return !rejected.contains(v.first); });
  size_t stand_ins = 0;
  for (auto each = model.versions.rbegin(); each != model.versions.rend(); ++each) {
    const uint64_t version = each->first;
    if (others && rejected.contains(version)) continue;
    if (choice.targets.size() < static_cast<size_t>(count)) {
      choice.targets.push_back(version);
      choice.wanted.push_back(version);
      if (failed.contains(version) && !wishes.unload.contains(version)) ++stand_ins;
    } else if (stand_ins > 0 && !failed.contains(version) && !wishes.unload.contains(version)) {
      choice.wanted.push_back(version);
      --stand_ins;
    }
  }
}

void ChooseLabelled(const RepositoryModel& model, const std::set<uint64_t>& failed,
                    VersionChoice& choice) {
  const auto& labels = model.marks.labels;
  std::set<uint64_t, std::greater<>> others;  // newest first
  for (const auto& [label, version] : labels) {
    if (!IsRejection(label)) others.insert(version);
  }
  for (const char* first : {kStable, kCanary}) {
    const auto found = labels.find(first);
    if (found != labels.end() && model.versions.contains(found->second)) {
      AddOnce(choice.targets, found->second);
    }
  }
  for (const uint64_t version : others) {
    if (model.versions.contains(version)) AddOnce(choice.targets, version);
  }
  choice.wanted = choice.targets;
  const auto stable = labels.find(kStable);
  if (stable != labels.end() &&
      (failed.contains(stable->second) || !model.versions.contains(stable->second))) {
    if (const auto stand_in = LastStable(model, failed, /*current=*/false)) {
      AddOnce(choice.wanted, *stand_in);
    }
  }
}

}  // namespace

bool RepositoryModel::operator==(const RepositoryModel& other) const {
  return versions == other.versions && marks.labels == other.marks.labels &&
         marks.history == other.marks.history && marks.pinned == other.marks.pinned;
}

absl::StatusOr<VersionPolicy> VersionPolicy::Parse(const std::string& text) {
  VersionPolicy policy;
  if (text == "auto") return policy;
  if (text == "labels") {
    policy.kind = Kind::kLabels;
    return policy;
  }
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  if (parts[0] == "latest" && parts.size() <= 2) {
    const auto count = parts.size() == 2 ? ParsePositive(parts[1]) : 1;
    if (count && *count <= 1000) {
      policy.kind = Kind::kLatest;
      policy.count = static_cast<int>(*count);
      return policy;
    }
  }
  policy.kind = Kind::kVersions;
  for (const std::string& each : std::vector<std::string>(absl::StrSplit(text, ','))) {
    const auto version = ParsePositive(each);
    if (!version) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", text, "\" is no version policy: there are auto, latest, latest:N, labels, and ",
          "numbers of versions with commas between"));
    }
    policy.versions.insert(*version);
  }
  return policy;
}

std::string VersionPolicy::ToString() const {
  switch (kind) {
    case Kind::kAuto:
      return "auto";
    case Kind::kLatest:
      return absl::StrCat("latest:", count);
    case Kind::kLabels:
      return "labels";
    case Kind::kVersions:
      return absl::StrJoin(versions, ",");
  }
  return "auto";
}

VersionChoice ChooseVersions(const VersionPolicy& policy, const RepositoryModel& model,
                             const std::set<uint64_t>& failed, const VersionWishes& wishes) {
  VersionChoice choice;
  switch (policy.kind) {
    case VersionPolicy::Kind::kAuto:
      // A label whose version is gone, and never had another, is as good as none.
      if (LastStable(model, {}, /*current=*/true)) {
        ChooseLabelled(model, failed, choice);
      } else {
        ChooseLatest(1, model, failed, wishes, choice);
      }
      break;
    case VersionPolicy::Kind::kLatest:
      ChooseLatest(policy.count, model, failed, wishes, choice);
      break;
    case VersionPolicy::Kind::kLabels:
      ChooseLabelled(model, failed, choice);
      break;
    case VersionPolicy::Kind::kVersions:
      for (auto each = policy.versions.rbegin(); each != policy.versions.rend(); ++each) {
        if (model.versions.contains(*each)) choice.targets.push_back(*each);
      }
      choice.wanted = choice.targets;
      break;
  }
  for (auto each = wishes.load.rbegin(); each != wishes.load.rend(); ++each) {
    if (model.versions.contains(*each)) AddOnce(choice.wanted, *each);
  }
  std::erase_if(choice.wanted, [&](uint64_t version) { return wishes.unload.contains(version); });
  return choice;
}

}  // namespace llava
