#include "server/gateway/model_choice.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr char kRejectedPrefix[] = "rejected-";
constexpr size_t kMaxLabelBytes = 64;

absl::Status CheckLabel(const std::string& label, const char* where) {
  const bool good = std::all_of(label.begin(), label.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
           c == '_' || c == '-';
  });
  if (good && label.size() <= kMaxLabelBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(where, " \"", label.substr(0, kMaxLabelBytes),
                                                 "\" is no label: 1 to ", kMaxLabelBytes,
                                                 " letters, digits, '.', '_' and '-'"));
}

uint64_t VersionOf(const v1::ModelInfo& model) { return model.model().version(); }

absl::Status NotServed(const std::vector<v1::ModelInfo>& versions, const ModelChoice& choice) {
  std::vector<std::string> known;
  for (const v1::ModelInfo& each : versions) {
    known.push_back(absl::StrCat(VersionOf(each), each.labels().empty() ? "" : " (",
                                 absl::StrJoin(each.labels(), ", "),
                                 each.labels().empty() ? "" : ")"));
  }
  return WithReason(absl::NotFoundError(absl::StrCat(
                        "model \"", versions.front().model().name(), "\" has no version ",
                        choice.version != 0 ? absl::StrCat(choice.version)
                                            : absl::StrCat("labelled \"", choice.label, "\""),
                        "; it has: ", absl::StrJoin(known, ", "))),
                    kReasonModelNotFound);
}

}  // namespace

VersionId IdOf(const v1::ModelVersion& version) {
  return {version.name(), version.version(), version.digest()};
}

std::string RejectedLabel(uint64_t version) { return absl::StrCat(kRejectedPrefix, version); }

absl::StatusOr<ModelChoice> ParseModelChoice(std::string_view text) {
  const size_t at = text.rfind('@');
  ModelChoice choice;
  choice.name = std::string(text.substr(0, at));
  if (at == std::string_view::npos) return choice;
  const std::string_view suffix = text.substr(at + 1);
  if (suffix.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model \"", std::string(text),
                     "\" names nothing behind the @; write NAME, NAME@VERSION ", "or NAME@LABEL"));
  }
  const char* const end = suffix.data() + suffix.size();
  const auto number = std::from_chars(suffix.data(), end, choice.version);
  if (number.ptr == end && number.ec == std::errc() && choice.version > 0) return choice;
  if (number.ptr == end) {
    return absl::InvalidArgumentError(
        absl::StrCat("model \"", std::string(text), "\": versions are numbers from 1 to 2^64 - 1"));
  }
  choice.version = 0;
  choice.label = std::string(suffix);
  if (auto status = CheckLabel(choice.label, "behind the @ of a model"); !status.ok())
    return status;
  return choice;
}

absl::StatusOr<ModelChoice> ReadModelChoice(const v1::ModelVersion& model,
                                            const std::string& label) {
  auto choice = ParseModelChoice(model.name());
  if (!choice.ok()) return choice;
  const int said =
      (choice->is_fixed() ? 1 : 0) + (model.version() != 0 ? 1 : 0) + (label.empty() ? 0 : 1);
  if (said > 1) {
    return absl::InvalidArgumentError(
        "model.name behind its @, model.version and model_label each choose a version; set one of "
        "them");
  }
  if (auto status = CheckLabel(label, "model_label"); !status.ok()) return status;
  if (model.version() != 0) choice->version = model.version();
  if (!label.empty()) choice->label = label;
  return choice;
}

absl::StatusOr<ModelChoice> ModelChoiceOf(const v1::Session& session) {
  auto choice = ParseModelChoice(session.model());
  if (choice.ok()) choice->key = session.id();
  return choice;
}

bool HasLabel(const v1::ModelInfo& model, std::string_view label) {
  return std::any_of(model.labels().begin(), model.labels().end(),
                     [label](const std::string& each) { return each == label; });
}

bool IsRejected(const v1::ModelInfo& model) {
  return HasLabel(model, RejectedLabel(VersionOf(model)));
}

bool IsCanaryKey(std::string_view key, std::string_view model, double share) {
  if (share <= 0) return false;
  // FNV-1a with a final mix, over another text than BackendPool hashes: who gets the canary says
  // nothing about the process.
  uint64_t hash = 0xcbf29ce484222325;
  for (const std::string_view part : {std::string_view("canary"), model, key}) {
    for (const char c : part) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    hash = (hash ^ 0xFF) * 0x100000001b3;
  }
  hash ^= hash >> 33;
  hash *= 0xff51afd7ed558ccd;
  hash ^= hash >> 33;
  hash *= 0xc4ceb9fe1a85ec53;
  hash ^= hash >> 33;
  return std::ldexp(static_cast<double>(hash >> 11), -53) < share;
}

absl::StatusOr<std::vector<v1::ModelInfo>> Eligible(std::vector<v1::ModelInfo> versions,
                                                    const ModelChoice& choice,
                                                    double canary_share) {
  std::sort(versions.begin(), versions.end(),
            [](const auto& a, const auto& b) { return VersionOf(a) > VersionOf(b); });
  if (choice.is_fixed()) {
    std::vector<v1::ModelInfo> chosen;
    for (const v1::ModelInfo& each : versions) {
      const bool fits =
          choice.version != 0 ? VersionOf(each) == choice.version : HasLabel(each, choice.label);
      // Processes that have not read the labels yet may still give one to an older version.
      if (fits && (chosen.empty() || VersionOf(each) == VersionOf(chosen[0]))) {
        chosen.push_back(each);
      }
    }
    if (chosen.empty()) return NotServed(versions, choice);
    return chosen;
  }
  const bool drawn = IsCanaryKey(choice.key, versions.front().model().name(), canary_share);
  const auto rank = [drawn](const v1::ModelInfo& each) {
    if (HasLabel(each, kStableLabel)) return 1;
    if (HasLabel(each, kCanaryLabel)) return drawn ? 0 : 3;
    return 2;
  };
  std::vector<v1::ModelInfo> eligible;
  for (const v1::ModelInfo& each : versions) {
    if (!IsRejected(each) || HasLabel(each, kStableLabel)) eligible.push_back(each);
  }
  if (eligible.empty()) {
    return OverloadedError(
        absl::StrCat("all served versions of model \"", versions.front().model().name(),
                     "\" were rejected by a rollout; label one \"", kStableLabel,
                     "\" or load another"),
        std::chrono::seconds(1));
  }
  std::stable_sort(eligible.begin(), eligible.end(),
                   [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  return eligible;
}

}  // namespace llava
