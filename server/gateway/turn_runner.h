#pragma once

#include <grpcpp/alarm.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/feature_delivery.h"
#include "server/gateway/generate_call.h"
#include "server/gateway/prompt.h"
#include "server/gateway/turn_parts.h"
#include "server/runtime/mutex.h"

namespace llava {

// Where the events of a turn go. Thread-safe; Close once, nothing after it.
class TurnSink {
 public:
  virtual ~TurnSink() = default;
  virtual void Send(v1::ChatEvent event) = 0;
  virtual void Close(const absl::Status& status) = 0;
};

// A question that passed the checks of request_checks.h.
struct TurnRequest {
  Caller caller;
  std::shared_ptr<TurnPermit> permit;  // its place; null: none is kept
  std::string request_id;
  // Empty: a call without session; `prompt` is the whole conversation.
  std::string session_id;
  Prompt prompt;
  // With a session: the new message ...
  std::string text;
  std::vector<StoredImage> images;
  // ... or the turn to be answered anew.
  std::string regenerate_turn_id;
  v1::ModelVersion model;
  v1::SamplingParams sampling;
  int32_t priority = 0;
  std::chrono::system_clock::time_point deadline;
  std::chrono::steady_clock::time_point received;
};

// One turn from question to stored answer, without a thread of its own: each step starts the next
// one from its callback, on threads of gRPC and of the store.
//
//   conversation -> version -> recorded -> [features -> generate]* -> stored -> told
//
// Before the first text the bracket is repeated: once after UNAVAILABLE, once after missing
// features, once after the version is gone; never afterwards. Whatever happens, the turn is stored
// with its text so far, the session is given back, the call is accounted for, and the sink is
// closed, in that order.
class TurnRunner : public std::enable_shared_from_this<TurnRunner> {
 public:
  // `on_end` runs last but for telling the client, with what it will be told.
  static std::shared_ptr<TurnRunner> Create(const TurnParts& parts, TurnRequest request,
                                            std::unique_ptr<TurnSink> sink,
                                            std::function<void(const absl::Status&)> on_end);
  void Start();
  // Thread-safe; only the first one counts.
  void Break(TurnBreak why);

 private:
  // What the caller is told at the end, and what is stored.
  struct Ending {
    v1::TurnState state = v1::TURN_STATE_FAILED;
    v1::FinishReason reason = v1::FINISH_REASON_ERROR;
    absl::Status status;  // OK: the client gets turn_finished
    std::string message;  // stored as the turn's error
  };

  TurnRunner(const TurnParts& parts, TurnRequest request, std::unique_ptr<TurnSink> sink,
             std::function<void(const absl::Status&)> on_end);

  void OnConversation(absl::StatusOr<Conversation> conversation);
  void FindVersion();
  void OnVersion(absl::StatusOr<Route> route);
  void OnRecorded(absl::StatusOr<v1::Turn> turn);
  void Attempt();
  void OnFeatures(absl::StatusOr<FeatureDelivery::Outcome> outcome);
  void Generate(const FeatureDelivery::Outcome& outcome);
  bool OnEvent(v1::GenerateResponse& event);
  bool OnStarted(const v1::GenerateStarted& started);
  bool OnDelta(v1::GenerateDelta& delta);
  void OnGenerated(absl::Status status);
  // True: another attempt is on its way.
  bool TryAgain(const absl::Status& status);
  void AttemptLater(std::chrono::milliseconds delay);
  void Reroute();

  Ending EndingOf(const absl::Status& status);
  Ending EndingOfBreak(TurnBreak why) const;
  void Conclude(Ending ending);
  void OnStored(const Ending& ending, const v1::ChatEvent& event, const absl::Status& stored);
  // Nothing was recorded: only the client is told.
  void Refuse(const absl::Status& status);
  void End(const absl::Status& status);

  // How Break ends the step under way; done at once if it came before.
  void SetStop(std::function<void()> stop);
  std::optional<TurnBreak> broken();
  std::string Key() const;
  TurnResult ResultOf(const Ending& ending);

  const TurnParts& parts_;
  const TurnRequest request_;
  const std::unique_ptr<TurnSink> sink_;
  const std::function<void(const absl::Status&)> on_end_;
  const std::string turn_id_;
  const std::chrono::system_clock::time_point deadline_;  // the client's or our own

  Mutex mutex_;
  std::optional<TurnBreak> break_ LLAVA_GUARDED_BY(mutex_);
  std::function<void()> stop_ LLAVA_GUARDED_BY(mutex_);

  // One step at a time touches these; store and gRPC order the steps.
  Prompt prompt_;
  NewTurn turn_;
  Route route_;
  grpc::Alarm alarm_;
  bool retried_ = false, refilled_ = false, rerouted_ = false;
  double vision_seconds_ = 0;
  v1::GenerateStarted started_;
  std::optional<v1::GenerateFinished> finished_;
  std::string text_;
  uint32_t token_count_ = 0;
  absl::Status protocol_error_;
  std::optional<std::chrono::steady_clock::time_point> first_text_, last_text_;
};

}  // namespace llava
