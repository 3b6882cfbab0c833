#pragma once

#include <grpcpp/alarm.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/feature_delivery.h"
#include "server/gateway/generate_call.h"
#include "server/gateway/live_answer.h"
#include "server/gateway/prompt.h"
#include "server/gateway/turn_ending.h"
#include "server/gateway/turn_parts.h"
#include "server/gateway/turn_request.h"
#include "server/runtime/mutex.h"

namespace llava {

// One turn from question to stored answer, without a thread of its own: each step starts the next
// one from its callback, on threads of gRPC, of the store and of the journal.
//
//   conversation -> version -> recorded -> [features -> generate]* -> journalled -> stored -> told
//
// Before the first token the bracket is repeated: once when a service has too much to do, once
// after missing features (and again for a service that has begun anew), and with another version,
// recorded and told anew, when the one that was chosen is gone. When a service died or is out of
// reach, it is waited for; what there is of the answer is gone on with from its tokens, by the same
// version, also by the next process, where it takes a place among the running turns first, on the
// terms of its first one. Every piece of text of a session's turn is in the journal before a reader
// sees it. Whatever happens, the turn is stored with its text so far, the session is given back,
// and the readers are told, in that order.
class TurnRunner : public RunningTurn, public std::enable_shared_from_this<TurnRunner> {
 public:
  // `on_end` runs once, right before the sink is closed with the same status: at the end of the
  // turn, or when its client went away before.
  static std::shared_ptr<TurnRunner> Create(const TurnParts& parts, TurnRequest request,
                                            std::unique_ptr<TurnSink> sink,
                                            std::function<void(const absl::Status&)> on_end);
  // Goes on with a turn of an earlier process; `journalled`: its answer so far, if it had begun.
  static std::shared_ptr<TurnRunner> CreateRecovered(const TurnParts& parts, UnfinishedTurn turn,
                                                     std::optional<JournalledAnswer> journalled);
  void Start();

  // RunningTurn. Only the first break counts.
  void Break(TurnBreak why) override;
  absl::Status Attach(TurnReader reader, const ResumePoint& from) override;
  const RequestKey& request_key() const override { return request_.key; }
  void CheckReaders(std::chrono::steady_clock::time_point now) override;

 private:
  TurnRunner(const TurnParts& parts, TurnRequest request);
  static double Seconds(std::chrono::steady_clock::time_point from,
                        std::chrono::steady_clock::time_point to);
  void MakeLive();

  // turn_runner.cc: up to the first attempt.
  bool JoinRunning();
  void OnConversation(absl::StatusOr<Conversation> conversation);
  void FindVersion();
  void OnVersion(absl::StatusOr<Route> route);
  // The version is to answer, with its defaults. Else it cannot: nothing has changed.
  absl::Status Take(Route route);
  // UNIMPLEMENTED if the question has a constraint and no process of the version can obey it.
  absl::Status CheckObeys(const v1::ModelInfo& model) const;
  void Record();
  void OnRecorded(absl::StatusOr<uint32_t> number);
  void TellStarted();

  // turn_recovery.cc: of an earlier process's turn.
  void TakeUp();
  void OnPlace(absl::StatusOr<std::shared_ptr<TurnPermit>> permit);
  // Runs `step` when the lane is free and it is on record that this process may die of it.
  void Try(void (TurnRunner::*step)());
  // It did not, and the try came to nothing.
  void EndTry();
  void LeaveLane(uint32_t tries);
  void LoadConversation();
  // The store could not read it: what is acknowledged does not end with that.
  void LoadAgain();

  // turn_attempts.cc: features, text, and what to do when they stop coming.
  void Attempt();
  void OnFeatures(absl::StatusOr<FeatureDelivery::Outcome> outcome);
  // The store can read the pictures again, so that a session's turn need not hold them.
  void DropPictures();
  void Generate(const FeatureDelivery::Outcome& outcome);
  bool OnEvent(v1::GenerateResponse& event);
  bool OnStarted(const v1::GenerateStarted& started);
  bool OnDelta(v1::GenerateDelta& delta);
  void OnGenerated(absl::Status status);
  // True: another attempt is on its way.
  bool TryAgain(const absl::Status& status);
  void Later(std::chrono::milliseconds delay, void (TurnRunner::*step)());
  void Later(std::chrono::milliseconds delay, std::function<void()> step);
  // The version went away between choice and call: chooses again. False: too often already.
  bool Reroute();
  void FindAnother();
  void OnAnother(absl::StatusOr<Route> route);
  void RecordAnother();
  // A service died over it, or is out of reach: waits for one that can go on with it. False: not
  // any more.
  bool GoOn(const absl::Status& status);
  bool WaitForWorker(void (TurnRunner::*step)());
  void Continue();
  ModelChoice VersionOfTurn() const;
  void OnVersionBack(absl::StatusOr<Route> route);
  bool begun() const { return recovered_ || answer_.tokens.ids_size() > 0 || text_bytes_ > 0; }

  // turn_runner.cc: the end.
  TurnEnding EndingOf(const absl::Status& status) const;
  TurnEnding EndingOfBreak(TurnBreak why);
  void Conclude(TurnEnding ending);
  void Store(const TurnEnding& ending);
  // Until the store has it, or the process stops. So long the session is taken.
  void Save(const TurnEnding& ending, const TurnResult& result);
  void OnStored(const TurnEnding& ending, const TurnResult& result);
  void Suspend(const TurnEnding& ending);
  // Nothing was recorded: only the client is told.
  void Refuse(const absl::Status& status);
  void End(const absl::Status& status, const v1::TurnFinished& finished);

  // How Break ends the step under way; done at once if it came before.
  void SetStop(std::function<void()> stop);
  std::optional<TurnBreak> broken();
  // Makes the answer known to the journal, with what there is of it.
  void JournalAnswer();
  // Text that was received could not be kept, and so was not told.
  void OnJournalFault(const absl::Status& status);
  bool journal_failed();
  bool has_session() const { return !request_.session_id.empty(); }
  std::string Key() const;
  TurnResult ResultOf(const TurnEnding& ending) const;
  // What this turn says of its version.
  TurnSample SampleOf(const TurnEnding& ending);

  const TurnParts& parts_;
  TurnRequest request_;  // its pictures and what they take: until the services have them
  const std::string turn_id_;
  const TurnDeadlines deadlines_;
  std::shared_ptr<LiveAnswer> live_;

  Mutex mutex_;
  std::optional<TurnBreak> break_ LLAVA_GUARDED_BY(mutex_);
  absl::Status journal_fault_ LLAVA_GUARDED_BY(mutex_);
  std::function<void()> stop_ LLAVA_GUARDED_BY(mutex_);

  // One step at a time touches these; store, journal and gRPC order the steps.
  ModelChoice choice_;
  Conversation conversation_;  // until it is recorded
  Prompt prompt_;
  NewTurn turn_;
  v1::SamplingParams wanted_;  // by question and session; `turn_` has the defaults of its version
  bool fits_ = false;          // old turns are dropped where the context is too short
  Route route_;
  std::shared_ptr<Backend> llm_;  // of the attempt under way, or of the last one
  grpc::Alarm alarm_;
  bool admitted_ = false, counted_ = false;
  bool avoid_ = false;                     // the process that failed last, if there is another
  std::shared_ptr<Backend> avoid_vision_;  // likewise
  bool retried_ = false, refilled_ = false;
  bool fitted_again_ = false;  // into the context of another version than first
  bool looked_again_ = false;  // for a process that has the version of the begun answer
  int reroutes_ = 0;
  bool asked_ = false;  // this attempt has come to the language service
  uint32_t number_ = 0;
  double vision_seconds_ = 0;
  v1::GenerateStarted started_;
  std::optional<v1::GenerateFinished> finished_;
  absl::Status protocol_error_;
  std::optional<std::chrono::steady_clock::time_point> first_text_, last_text_;
  uint32_t pieces_ = 0;                      // of text
  std::chrono::milliseconds save_delay_{0};  // before the next try
  double largest_gap_ = 0;

  // What there is of the answer; its text is in `live_` once it is journalled.
  JournalledAnswer answer_;
  uint64_t text_bytes_ = 0;            // received
  bool recovered_ = false;             // an earlier process began it
  bool proven_ = true;                 // false: taken up, and has no new word yet
  bool trying_ = false;                // is in the lane
  uint32_t tries_ = 0;                 // processes that died while they took it up
  bool worker_began_ = false;          // this attempt's worker has taken it up
  std::atomic<bool> arrived_ = false;  // its request came to the service
  std::optional<std::chrono::steady_clock::time_point> patience_;  // until then wait for a worker
};

}  // namespace llava
