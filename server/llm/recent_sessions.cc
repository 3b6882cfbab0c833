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

void RecentSessions::Forget(const std::set<std::string>& sessions, const PictureSet& pictures) {
  const auto goes = [&](const Session& session) {
    if (sessions.contains(session.id)) return true;
    return std::any_of(session.messages.begin(), session.messages.end(), [&](const auto& message) {
      return std::any_of(message.images().begin(), message.images().end(),
                         [&](const auto& key) { return pictures.contains(key.image_sha256()); });
    });
  };
  std::list<Session> forgotten;  // destroyed without the lock
  MutexLock lock(mutex_);
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    const auto next = std::next(it);
    if (goes(*it)) forgotten.splice(forgotten.end(), sessions_, it);
    it = next;
  }
}

std::vector<RecentSessions::Session> RecentSessions::List() const {
  MutexLock lock(mutex_);
  return {sessions_.begin(), sessions_.end()};
}

}  // namespace llava
