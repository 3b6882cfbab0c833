#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/llm.pb.h"
#include "server/gateway/feature_delivery.h"
#include "server/gateway/prompt.h"
#include "server/gateway/turn_parts.h"
#include "server/runtime/mutex.h"

namespace llava {

// Asks an LLM service how long a prompt is. A model of the anyres mode has to know its pictures for
// that: features that it lacks are brought to it, once. Lives in its callbacks.
class PromptCount : public std::enable_shared_from_this<PromptCount> {
 public:
  // An error tells the service that failed (Backend::Explain).
  using Done = std::function<void(absl::StatusOr<v1::CountTokensResponse>)>;

  // `prompt` must live until `done`, which runs once, on a thread of gRPC or of the store or within
  // Start.
  static std::shared_ptr<PromptCount> Create(const TurnParts& parts, const Prompt& prompt,
                                             const Route& route, std::shared_ptr<Backend> llm,
                                             FeatureDelivery::Terms terms, Done done);
  void Start();
  // Thread-safe, also before Start; `done` follows with CANCELLED unless it has just run.
  void Cancel();

 private:
  PromptCount(const TurnParts& parts, const Prompt& prompt, const Route& route,
              std::shared_ptr<Backend> llm, FeatureDelivery::Terms terms, Done done);

  void Ask(const std::map<std::string, v1::FeatureKey>& keys);
  void OnAnswer(const absl::Status& status);
  bool cancelled();

  const TurnParts& parts_;
  const Prompt& prompt_;
  const Route route_;
  const std::shared_ptr<Backend> llm_;
  const FeatureDelivery::Terms terms_;
  const Done done_;
  bool brought_ = false;  // features, once
  Mutex mutex_;
  bool cancelled_ LLAVA_GUARDED_BY(mutex_) = false;
  // What is under way, one of them.
  std::shared_ptr<CallContext> context_ LLAVA_GUARDED_BY(mutex_);
  std::shared_ptr<FeatureDelivery> delivery_ LLAVA_GUARDED_BY(mutex_);
  v1::CountTokensRequest request_;
  v1::CountTokensResponse response_;
};

// One count after the other, of which that under way can be stopped. Thread-safe.
class CountUnderWay {
 public:
  void Start(std::shared_ptr<PromptCount> count);
  // Also what is started later.
  void Cancel();
  bool cancelled() const;
  // Lets go of the last one, which holds whom it tells.
  void Clear();

 private:
  mutable Mutex mutex_;
  bool cancelled_ LLAVA_GUARDED_BY(mutex_) = false;
  std::shared_ptr<PromptCount> count_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
