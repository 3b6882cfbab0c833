#pragma once

// How a version gets the memory it needs, decided before anything is read. Pure functions.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace llava {

enum class SwapMode {
  kSideBySide,  // load beside the old version, then let that go
  kRolling,     // worker by worker: the old version gives one up, the new one takes it
  kInPlace      // check the files, let the old version go, then load
};
const char* ToString(SwapMode mode);  // "side_by_side", "rolling", "in_place"
// Of --swap-mode; nothing for "auto", its only other word.
std::optional<SwapMode> ParseSwapMode(const std::string& text);

// Resident bytes of a version on 1, 2, ... workers.
using WorkerBytes = std::vector<uint64_t>;

struct SwapRequest {
  WorkerBytes candidate;  // the version to load, on up to all workers
  // A loaded version of the same model that may go for it: the one that would be missed least.
  struct Old {
    uint64_t version = 0;
    WorkerBytes bytes;
    int workers = 0;         // that hold it
    bool restorable = true;  // could be loaded again: its files are still there
  };
  std::vector<Old> old;        // in the order in which they go
  uint64_t staying_bytes = 0;  // of all else that is loaded, loading or about to be freed
  bool in_motion = false;      // something is: what does not fit now may fit soon
  uint64_t budget = 0;         // bytes that all versions may take together; 0: no limit
  bool soft_budget = false;    // a guess: it chooses the mode, and refuses nothing
  std::optional<SwapMode> forced;
};

struct SwapPlan {
  enum class Verdict {
    kGo,
    kWait,   // until what is in motion has come to rest
    kRefuse  // `why` tells, with numbers
  };
  Verdict verdict = Verdict::kGo;
  SwapMode mode = SwapMode::kSideBySide;
  std::vector<uint64_t> victims =
      {};                // versions that go first (kInPlace) or step by step (kRolling)
  std::string why = "";  // the choice in words
};

// side_by_side if all fits; else, when something is in motion, wait; else rolling if there are
// several workers and every step fits; else in_place; else no. A forced mode is taken if it fits;
// rolling with a single worker is in_place.
SwapPlan PlanSwap(const SwapRequest& request);

}  // namespace llava
