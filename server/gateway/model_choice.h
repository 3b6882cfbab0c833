#pragma once

// What a request says of its model, and which of the versions that are served it gets. Pure.

#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/chat.pb.h"
#include "llava/v1/models.pb.h"

namespace llava {

// The version that answers by default.
inline constexpr char kStableLabel[] = "stable";
// The version that gets a share of the sessions.
inline constexpr char kCanaryLabel[] = "canary";

// The same number with other contents is another version.
using VersionId = std::tuple<std::string, uint64_t, std::string>;
VersionId IdOf(const v1::ModelVersion& version);

// Labels are unique, versions that failed are many: "rejected-7" points at version 7, which answers
// only who asks for it by number or label.
std::string RejectedLabel(uint64_t version);

// At most one of `version` and `label` is set.
struct ModelChoice {
  std::string name{};    // empty: the default model
  uint64_t version = 0;  // exactly this one
  std::string label{};   // the one that has it
  std::string key{};     // session, or call without one: what the share of the canary is drawn by

  bool is_fixed() const { return version != 0 || !label.empty(); }
};

// "name", "name@version" or "name@label". INVALID_ARGUMENT says what is wrong.
absl::StatusOr<ModelChoice> ParseModelChoice(std::string_view text);
// The same of a request's fields; the suffix of the name and the other two must not disagree.
absl::StatusOr<ModelChoice> ReadModelChoice(const v1::ModelVersion& model,
                                            const std::string& label);

// Of a session's turns that say nothing themselves.
absl::StatusOr<ModelChoice> ModelChoiceOf(const v1::Session& session);

bool HasLabel(const v1::ModelInfo& model, std::string_view label);
bool IsRejected(const v1::ModelInfo& model);

// Is this one of the `share` (0 to 1) of all keys? Always the same for a key and model, and still
// true when the share grows.
bool IsCanaryKey(std::string_view key, std::string_view model, double share);

// The versions that may answer, best first; `versions` are all of one model. For a fixed choice the
// one version, NOT_FOUND naming what there is. Else the canary if the key is drawn, the stable one,
// then the newest. Rejected ones are not among them: UNAVAILABLE when there is nothing else.
absl::StatusOr<std::vector<v1::ModelInfo>> Eligible(std::vector<v1::ModelInfo> versions,
                                                    const ModelChoice& choice, double canary_share);

}  // namespace llava
