#pragma once

#include <list>
#include <memory>
#include <string>

#include "server/gateway/feature_delivery.h"
#include "server/gateway/image_files.h"
#include "server/gateway/turn_parts.h"

namespace llava {

// Has pictures encoded as soon as they are uploaded, for the model of their session and at the
// service that will answer, so that the question need not wait for it. Only a head start: what
// fails here is told when it is asked about. What comes when the session is deleted by then is
// dropped again. Thread-safe.
class PictureWarmup {
 public:
  explicit PictureWarmup(const TurnParts& parts) : parts_(parts) {}

  // Returns at once. Does nothing when many pictures are under way already.
  void Begin(const std::string& session_id, const StoredImage& image);
  // Ends what is under way; nothing begins afterwards.
  void Stop();

 private:
  struct Job {
    std::string session_id, image_id;
    Prompt prompt;
    std::shared_ptr<FeatureDelivery> delivery;
  };
  using Place = std::list<Job>::iterator;

  void OnSession(Place place, const absl::StatusOr<v1::Session>& session);
  void OnDelivered(Place place, const absl::Status& status);
  void End(Place place, const absl::Status& status);

  const TurnParts& parts_;
  Mutex mutex_;
  CondVar changed_;
  bool stopped_ LLAVA_GUARDED_BY(mutex_) = false;
  std::list<Job> jobs_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
