#include "server/llm/recent_sessions.h"

#include <algorithm>
#include <iterator>

namespace llava {

void RecentSessions::Note(const v1::GenerateRequest& request, const v1::TokenIds& answer) {
  if (capacity_ == 0 || request.session_id().empty()) return;
  std::list<Session> noted;  // made without the lock
  noted.push_back({request.session_id(), request.messages(), answer, request.cache_salt()});
  MutexLock lock(mutex_);
  const auto same = [&](const Session& session) { return session.id == request.session_id(); };
  const auto old = std::find_if(sessions_.begin(), sessions_.end(), same);
  if (old != sessions_.end()) {
    noted.splice(noted.end(), sessions_, old);
  } else if (sessions_.size() >= capacity_) {
    noted.splice(noted.end(), sessions_, std::prev(sessions_.end()));
  }
  sessions_.splice(sessions_.begin(), noted, noted.begin());
}

std::vector<RecentSessions::Session> RecentSessions::List() const {
  MutexLock lock(mutex_);
  return {sessions_.begin(), sessions_.end()};
}

}  // namespace llava
