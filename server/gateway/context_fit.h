#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/llm.pb.h"
#include "server/gateway/feature_delivery.h"
#include "server/gateway/model_router.h"
#include "server/gateway/prompt.h"
#include "server/gateway/prompt_count.h"
#include "server/gateway/store_records.h"
#include "server/gateway/turn_parts.h"

namespace llava {

// Makes a conversation fit into the context of its model by CONTEXT_OVERFLOW_DROP_OLDEST_TURNS: as
// many of the oldest turns as needed are marked as dropped, in the conversation and in
// `turn.dropped_turns`. Room is kept for the answer (max_new_tokens, at most a quarter of the
// context). A prompt that is too long by itself stays so: the language service says it best.
class ContextFit : public std::enable_shared_from_this<ContextFit> {
 public:
  using Done = std::function<void(absl::Status)>;

  // `conversation` and `turn` must live until `done`, which runs once, on a gRPC thread
  // or within Start.
  static std::shared_ptr<ContextFit> Create(const TurnParts& parts, Conversation& conversation,
                                            NewTurn& turn, const Route& route,
                                            FeatureDelivery::Terms terms, Done done);
  void Start();
  // Thread-safe, also before Start; `done` follows with CANCELLED unless it has just run.
  void Cancel();

 private:
  ContextFit(const TurnParts& parts, Conversation& conversation, NewTurn& turn, const Route& route,
             FeatureDelivery::Terms terms, Done done);

  void Count();
  void OnCount(const absl::StatusOr<v1::CountTokensResponse>& counts);
  // Drops turns of about `tokens` tokens, at least one. False: none is left.
  bool Drop(int64_t tokens);
  void Finish(const absl::Status& status);

  const TurnParts& parts_;
  Conversation& conversation_;
  NewTurn& turn_;
  const Route route_;
  std::shared_ptr<Backend> llm_;
  const FeatureDelivery::Terms terms_;
  const Done done_;
  Prompt prompt_;  // that is being counted

  CountUnderWay count_;
};

}  // namespace llava
