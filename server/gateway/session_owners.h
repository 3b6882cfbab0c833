#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <unordered_map>

#include "absl/status/status.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/conversation_store.h"
#include "server/runtime/mutex.h"

namespace llava {

// Keeps callers to their own sessions: somebody else's is as unknown as one that never was.
// Remembers owners, which never change, so that a session in use costs no visit to the store.
// Thread-safe.
class SessionOwners {
 public:
  explicit SessionOwners(ConversationStore& store, size_t capacity = 1 << 16)
      : store_(store), capacity_(capacity) {}

  // `done` gets OK, the NOT_FOUND of an unknown session, or the store's own fault; on this thread
  // or the store's. A session that was deleted since may pass: the store knows it no more either.
  void Check(const Caller& caller, const std::string& session_id,
             std::function<void(absl::Status)> done);

 private:
  using Owners = std::unordered_map<std::string, std::string>;
  bool Remembers(const std::string& owner, const std::string& session_id);
  void Remember(const std::string& owner, const std::string& session_id);

  ConversationStore& store_;
  const size_t capacity_;
  Mutex mutex_;
  // What was used since the older half was dropped, and what was used before.
  Owners recent_ LLAVA_GUARDED_BY(mutex_), older_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
