#include "server/gateway/key_lanes.h"

#include <utility>

namespace llava {

void KeyLanes::Enter(const std::string& key, Work work) {
  {
    MutexLock lock(state_->mutex);
    state_->lanes[key].waiting.push_back(std::move(work));
  }
  Run(state_, key);
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
      work = std::move(lane.waiting.front());
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
