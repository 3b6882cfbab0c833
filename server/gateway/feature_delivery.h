#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/feature_transfer.h"
#include "server/gateway/prompt.h"
#include "server/gateway/turn_parts.h"
#include "server/runtime/mutex.h"

namespace llava {

// The names of the features of `images` under the spec of `route`. Image ids are hex digests.
std::map<std::string, v1::FeatureKey> FeatureKeys(const std::vector<std::string>& images,
                                                  const Route& route);

// Sees to it that an LLM service has the features of all pictures of a prompt: those it is
// believed to have are left alone, what another delivery brings is waited for, a few others at a
// time go through the vision services.
//
// Thread-safe; lives until its callback has run.
class FeatureDelivery : public std::enable_shared_from_this<FeatureDelivery> {
 public:
  struct Outcome {
    std::map<std::string, v1::FeatureKey> keys;  // by image id
    // Wall time, 0 when nothing had to be computed.
    double vision_seconds = 0;
  };
  // `failed`: the vision service whose call ended the delivery, if one did.
  using Done = std::function<void(absl::StatusOr<Outcome>, std::shared_ptr<Backend> failed)>;

  // What the services are told of a delivery.
  struct Terms {
    Caller caller;  // in whose share it is
    std::string request_id;
    int32_t priority = 0;
    std::chrono::system_clock::time_point deadline;
    std::shared_ptr<Backend> except = nullptr;  // rather another vision service
  };

  // `prompt` must live until `done`, which runs once: at once when all features are there, else on
  // a thread of gRPC or of the store. The first error ends the delivery.
  static std::shared_ptr<FeatureDelivery> Create(const TurnParts& parts, const Prompt& prompt,
                                                 Route route, std::shared_ptr<Backend> llm,
                                                 Terms terms, Done done);
  void Start();
  // `done` follows with CANCELLED unless it has just run.
  void Cancel();

 private:
  FeatureDelivery(const TurnParts& parts, const Prompt& prompt, Route route,
                  std::shared_ptr<Backend> llm, Terms terms, Done done);

  // Starts transfers until enough are under way; ends the delivery when none is left.
  void Advance();
  // Fetches and transfers a picture, unless that is done or under way already.
  void Bring(const std::string& image);
  void AskForRoom(const std::string& image);
  using Room = std::shared_ptr<TransferMemory::Share>;
  void OnRoom(const std::string& image, Room room);
  void OnFile(const std::string& image, Room room, absl::StatusOr<std::string> bytes);
  void Transfer(const std::string& image, Room room, std::string bytes);
  // `failed`: the vision service, if the error is its.
  void OnTransfer(const std::string& image, std::shared_ptr<Backend> failed,
                  absl::StatusOr<FeatureTransfer::Result> result);
  // One picture is through, or the delivery has failed.
  void Settle(const absl::Status& status);
  // The same for a picture that this delivery was bringing.
  void Release(const std::string& image, const absl::Status& status);
  // The delivery fails; what is under way for it ends.
  void BreakOff(const absl::Status& status);

  const TurnParts& parts_;
  const Prompt& prompt_;
  const Route route_;
  const std::shared_ptr<Backend> llm_;
  const Terms terms_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();

  Mutex mutex_;
  Done done_ LLAVA_GUARDED_BY(mutex_);
  Outcome outcome_ LLAVA_GUARDED_BY(mutex_);
  std::deque<std::string> waiting_ LLAVA_GUARDED_BY(mutex_);
  int under_way_ LLAVA_GUARDED_BY(mutex_) = 0;
  std::map<std::string, uint64_t> tickets_ LLAVA_GUARDED_BY(mutex_);       // brought by another
  std::map<std::string, uint64_t> room_tickets_ LLAVA_GUARDED_BY(mutex_);  // wait for room
  // Under way, by image id; null until its start has returned. A transfer holds its picture.
  std::map<std::string, std::shared_ptr<FeatureTransfer>> transfers_ LLAVA_GUARDED_BY(mutex_);
  absl::Status failure_ LLAVA_GUARDED_BY(mutex_);
  std::shared_ptr<Backend> failed_ LLAVA_GUARDED_BY(mutex_);
  bool computed_ LLAVA_GUARDED_BY(mutex_) = false;
};

}  // namespace llava
