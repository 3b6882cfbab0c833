#include "server/gateway/running_turns.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace llava {

absl::Status RunningTurns::Add(const std::string& key, const std::string& turn_id, Cancel cancel) {
  MutexLock lock(mutex_);
  const auto [entry, added] = entries_.try_emplace(key, Entry{turn_id, std::move(cancel), {}});
  if (added) return absl::OkStatus();
  if (entry->second.turn_id.empty()) return absl::AbortedError("this session is being deleted");
  return absl::AbortedError(absl::StrCat("turn ", entry->second.turn_id,
                                         " of this session is still ",
                                         "running; wait for its end or stop it with CancelTurn"));
}

void RunningTurns::Remove(const std::string& key) {
  Entry entry;
  {
    MutexLock lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end()) return;
    entry = std::move(found->second);
    entries_.erase(found);
  }
  for (const auto& ended : entry.waiting) ended();
}

bool RunningTurns::Break(const std::string& key, const std::string& turn_id, TurnBreak why,
                         std::function<void()> ended) {
  Cancel cancel;
  {
    MutexLock lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end() || found->second.turn_id.empty()) return false;
    if (!turn_id.empty() && turn_id != found->second.turn_id) return false;
    found->second.waiting.push_back(std::move(ended));
    cancel = found->second.cancel;
  }
  cancel(why);
  return true;
}

void RunningTurns::BreakAll(TurnBreak why) {
  std::vector<Cancel> cancels;
  {
    MutexLock lock(mutex_);
    for (const auto& [key, entry] : entries_) {
      if (!entry.turn_id.empty()) cancels.push_back(entry.cancel);
    }
  }
  for (const Cancel& cancel : cancels) cancel(why);
}

}  // namespace llava
