#include "server/gateway/running_turns.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace llava {

absl::Status RunningTurns::Add(const std::string& key, const std::string& turn_id,
                               std::shared_ptr<RunningTurn> turn) {
  MutexLock lock(mutex_);
  const auto [entry, added] = entries_.try_emplace(key, Entry{turn_id, std::move(turn)});
  if (added) return absl::OkStatus();
  if (!entry->second.turn)
    return absl::AbortedError("this session is being changed or deleted; try again");
  return absl::AbortedError(absl::StrCat("turn ", entry->second.turn_id,
                                         " of this session is still ",
                                         "running; wait for its end or stop it with CancelTurn"));
}

void RunningTurns::AddInLine(const std::string& key, const std::string& turn_id,
                             std::shared_ptr<RunningTurn> turn, std::function<void()> start) {
  {
    MutexLock lock(mutex_);
    if (const auto found = entries_.find(key); found != entries_.end()) {
      found->second.line.push_back({turn_id, std::move(turn), std::move(start)});
      return;
    }
    entries_.emplace(key, Entry{turn_id, std::move(turn)});
  }
  start();
}

void RunningTurns::Remove(const std::string& key, bool over) {
  Entry entry;
  std::function<void()> start;
  {
    MutexLock lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end()) return;
    entry = std::move(found->second);
    if (entry.line.empty()) {
      entries_.erase(found);
    } else {
      Next next = std::move(entry.line.front());
      entry.line.pop_front();
      found->second = {std::move(next.turn_id), std::move(next.turn), {}, std::move(entry.line)};
      start = std::move(next.start);
    }
  }
  for (const auto& ended : entry.waiting) ended(over);
  if (start) start();
}

std::shared_ptr<RunningTurn> RunningTurns::Find(const std::string& key,
                                                const std::string& turn_id) {
  MutexLock lock(mutex_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return nullptr;
  if (!turn_id.empty() && turn_id != found->second.turn_id) return nullptr;
  return found->second.turn;
}

absl::StatusOr<std::shared_ptr<RunningTurn>> RunningTurns::FindRepeated(const std::string& key,
                                                                        const RequestKey& request) {
  auto turn = Find(key, "");
  if (!turn || request.key.empty() || turn->request_key().key != request.key) return nullptr;
  if (turn->request_key().hash != request.hash) return RequestKeyTaken("that is still running");
  return turn;
}

bool RunningTurns::Taken(const std::string& key) {
  MutexLock lock(mutex_);
  return entries_.contains(key);
}

bool RunningTurns::Break(const std::string& key, const std::string& turn_id, TurnBreak why,
                         std::function<void(bool over)> ended) {
  std::shared_ptr<RunningTurn> turn;
  {
    MutexLock lock(mutex_);
    const auto found = entries_.find(key);
    if (found == entries_.end() || !found->second.turn) return false;
    if (!turn_id.empty() && turn_id != found->second.turn_id) return false;
    found->second.waiting.push_back(std::move(ended));
    turn = found->second.turn;
  }
  turn->Break(why);
  return true;
}

std::vector<std::shared_ptr<RunningTurn>> RunningTurns::All() {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<RunningTurn>> turns;
  for (const auto& [key, entry] : entries_) {
    if (entry.turn) turns.push_back(entry.turn);
  }
  return turns;
}

void RunningTurns::BreakAll(TurnBreak why) {
  for (const auto& turn : All()) turn->Break(why);
}

void RunningTurns::CheckReaders() {
  const auto now = std::chrono::steady_clock::now();
  for (const auto& turn : All()) turn->CheckReaders(now);
}

}  // namespace llava
