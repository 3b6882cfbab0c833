#include "server/gateway/key_lanes.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kRetry{1000};

}  // namespace

absl::Status KeyLanes::Enter(const std::string& key, const void* who, Work work) {
  {
    MutexLock lock(state_->mutex);
    auto& waiting = state_->lanes[key].waiting;
    if (waiting.size() >= state_->most_waiting) {
      return LimitError(
          absl::StrCat(waiting.size(), " calls of this kind",
                       key.empty() ? "" : absl::StrCat(" of the API key \"", key, "\""),
                       " wait already; wait for some of them to end"),
          kRetry);
    }
    waiting.emplace_back(who, std::move(work));
  }
  Run(state_, key);
  return absl::OkStatus();
}

bool KeyLanes::TakeBack(const std::string& key, const void* who) {
  Work work;  // goes without the lock
  MutexLock lock(state_->mutex);
  const auto lane = state_->lanes.find(key);
  if (lane == state_->lanes.end()) return false;
  auto& waiting = lane->second.waiting;
  const auto found = std::find_if(waiting.begin(), waiting.end(),
                                  [who](const auto& each) { return each.first == who; });
  if (found == waiting.end()) return false;
  work = std::move(found->second);
  waiting.erase(found);
  return true;
}

void KeyLanes::Run(const std::shared_ptr<State>& state, const std::string& key) {
  for (bool first = true;; first = false) {
    Work work;
    {
      MutexLock lock(state->mutex);
      const auto found = state->lanes.find(key);
      if (found == state->lanes.end()) return;
      Lane& lane = found->second;
      if (first && lane.running) return;  // whoever is at it sees what has come
      lane.running = !lane.waiting.empty() && lane.taken < state->most;
      if (!lane.running) {
        if (lane.waiting.empty() && lane.taken == 0) state->lanes.erase(found);
        return;
      }
      work = std::move(lane.waiting.front().second);
      lane.waiting.pop_front();
      ++lane.taken;
    }
    work(Place(static_cast<void*>(state.get()), [state, key](void*) { Leave(state, key); }));
  }
}

void KeyLanes::Leave(const std::shared_ptr<State>& state, const std::string& key) {
  {
    MutexLock lock(state->mutex);
    --state->lanes[key].taken;
  }
  Run(state, key);
}

}  // namespace llava
