#include "server/lifecycle/swap_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace llava {
namespace {

std::string ShowBytes(uint64_t bytes) {
  if (bytes < uint64_t{1} << 20) return absl::StrCat(bytes, " bytes");
  if (bytes < uint64_t{1} << 30) return absl::StrFormat("%.1f MiB", bytes / 1048576.0);
  return absl::StrFormat("%.2f GiB", bytes / 1073741824.0);
}

uint64_t BytesOn(const WorkerBytes& bytes, int workers) {
  if (bytes.empty() || workers <= 0) return 0;
  return bytes[std::min(static_cast<size_t>(workers), bytes.size()) - 1];
}

uint64_t SumOf(const std::vector<SwapRequest::Old>& old, size_t first) {
  uint64_t sum = 0;
  for (size_t i = first; i < old.size(); ++i) sum += BytesOn(old[i].bytes, old[i].workers);
  return sum;
}

SwapPlan Refuse(std::string why) {
  return {.verdict = SwapPlan::Verdict::kRefuse, .why = std::move(why)};
}

// Worker by worker instead of the first old version.
bool CanRoll(const SwapRequest& request) {
  if (request.old.empty()) return false;
  const SwapRequest::Old& old = request.old.front();
  const int workers = static_cast<int>(request.candidate.size());
  if (workers < 2 || old.workers != workers) return false;
  if (request.budget == 0) return true;
  const uint64_t others = request.staying_bytes + SumOf(request.old, 1);
  for (int moved = 1; moved <= workers; ++moved) {
    if (others + BytesOn(old.bytes, workers - moved) + BytesOn(request.candidate, moved) >
        request.budget) {
      return false;
    }
  }
  return true;
}

}  // namespace

const char* ToString(SwapMode mode) {
  switch (mode) {
    case SwapMode::kSideBySide:
      return "side_by_side";
    case SwapMode::kRolling:
      return "rolling";
    case SwapMode::kInPlace:
      return "in_place";
  }
  return "unknown";
}

std::optional<SwapMode> ParseSwapMode(const std::string& text) {
  for (const SwapMode mode : {SwapMode::kSideBySide, SwapMode::kRolling, SwapMode::kInPlace}) {
    if (text == ToString(mode)) return mode;
  }
  return std::nullopt;
}

SwapPlan PlanSwap(const SwapRequest& request) {
  const int workers = static_cast<int>(request.candidate.size());
  const uint64_t needed = BytesOn(request.candidate, workers);
  const uint64_t old_bytes = SumOf(request.old, 0);
  const auto fits = [&](uint64_t bytes) {
    return request.budget == 0 || request.staying_bytes + bytes <= request.budget;
  };
  const std::string sizes =
      absl::StrCat("it takes ", ShowBytes(needed), ", ",
                   ShowBytes(request.staying_bytes + old_bytes), " are taken, --memory-budget is ",
                   request.budget == 0 ? "unlimited" : ShowBytes(request.budget));

  // Nobody there that could go first.
  const bool alone = request.old.empty();
  const bool beside_allowed = alone || !request.forced || *request.forced == SwapMode::kSideBySide;
  if (beside_allowed && fits(old_bytes + needed)) return {.why = sizes};
  if (request.in_motion) {
    return {.verdict = SwapPlan::Verdict::kWait, .why = absl::StrCat("waits for memory: ", sizes)};
  }
  if (alone && request.soft_budget) return {.why = sizes};
  if (alone) return Refuse(absl::StrCat("too large beside what stays loaded: ", sizes));
  if (request.forced == SwapMode::kSideBySide) {
    return Refuse(absl::StrCat("too large for --swap-mode side_by_side: ", sizes));
  }

  if (request.forced != SwapMode::kInPlace) {
    if (CanRoll(request)) {
      return {.mode = SwapMode::kRolling, .victims = {request.old.front().version}, .why = sizes};
    }
    if (request.forced == SwapMode::kRolling && workers > 1) {
      return Refuse(absl::StrCat("--swap-mode rolling does not fit at every step: ", sizes));
    }
  }
  SwapPlan plan{.mode = SwapMode::kInPlace, .why = sizes};
  for (size_t i = 0; i < request.old.size(); ++i) {
    const SwapRequest::Old& old = request.old[i];
    if (!old.restorable && !request.forced) {
      return Refuse(absl::StrCat("version ", old.version,
                                 " would have to make way first and could not be brought back, "
                                 "because its folder is gone; unload it to go on: ",
                                 sizes));
    }
    plan.victims.push_back(old.version);
    if (fits(SumOf(request.old, i + 1) + needed)) return plan;
  }
  if (request.soft_budget) return plan;
  return Refuse(absl::StrCat("too large, even without version ", absl::StrJoin(plan.victims, ", "),
                             ": ", sizes));
}

}  // namespace llava
