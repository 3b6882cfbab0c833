#pragma once

#include <cstddef>
#include <list>
#include <set>
#include <string>
#include <vector>

#include "llava/v1/llm.pb.h"
#include "server/runtime/mutex.h"
#include "server/wire/feature_key.h"

namespace llava {

// The conversations that were answered last, so that a new version can read them before their next
// turn. Thread-safe.
class RecentSessions {
 public:
  struct Session {
    std::string id;
    google::protobuf::RepeatedPtrField<v1::PromptMessage> messages;  // up to the last question
    v1::TokenIds answer;
    std::string cache_salt;
  };

  explicit RecentSessions(size_t capacity) : capacity_(capacity) {}

  // A turn has ended in an orderly way. Those without a session are not noted.
  void Note(const v1::GenerateRequest& request, const v1::TokenIds& answer);
  // Forgets these, and all with one of the pictures.
  void Forget(const std::set<std::string>& sessions, const PictureSet& pictures);
  // The latest first.
  std::vector<Session> List() const;

 private:
  const size_t capacity_;
  mutable Mutex mutex_;
  std::list<Session> sessions_ LLAVA_GUARDED_BY(mutex_);  // the latest first
};

}  // namespace llava
