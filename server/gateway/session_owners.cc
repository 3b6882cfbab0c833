#include "server/gateway/session_owners.h"

#include <utility>

namespace llava {

void SessionOwners::Check(const Caller& caller, const std::string& session_id,
                          std::function<void(absl::Status)> done) {
  if (caller.is_admin()) return done(absl::OkStatus());
  if (Remembers(caller.name(), session_id)) return done(absl::OkStatus());
  // A stranger is always told by the store, so that time tells him nothing either.
  store_.GetSession(session_id, [this, name = caller.name(), session_id, done = std::move(done)](
                                    const absl::StatusOr<v1::Session>& session) {
    if (!session.ok()) return done(session.status());
    if (session->owner() != name) return done(NoSession(session_id));
    Remember(name, session_id);
    done(absl::OkStatus());
  });
}

bool SessionOwners::Remembers(const std::string& owner, const std::string& session_id) {
  {
    MutexLock lock(mutex_);
    if (const auto found = recent_.find(session_id); found != recent_.end()) {
      return found->second == owner;
    }
    const auto found = older_.find(session_id);
    if (found == older_.end() || found->second != owner) return false;
  }
  Remember(owner, session_id);
  return true;
}

void SessionOwners::Remember(const std::string& owner, const std::string& session_id) {
  MutexLock lock(mutex_);
  recent_[session_id] = owner;
  if (recent_.size() < capacity_ / 2) return;
  older_ = std::move(recent_);
  recent_.clear();
}

}  // namespace llava
