#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "server/gateway/chat_service.h"
#include "server/gateway/feature_drops.h"
#include "server/gateway/http_front.h"
#include "server/gateway/key_lanes.h"
#include "server/gateway/model_admin.h"
#include "server/gateway/model_service.h"
#include "server/gateway/picture_warmup.h"
#include "server/gateway/resumable_calls.h"
#include "server/gateway/rollout_guard.h"
#include "server/gateway/rollout_service.h"
#include "server/gateway/send_watch.h"
#include "server/gateway/stoppable_calls.h"
#include "server/gateway/turn_parts.h"

namespace llava {

// All of a gateway but ports and signals.
//
// Order of calls: Open, serve `services()`, Start, ..., Stop, end of the server, destructor. Stop
// also where it comes to no Start: turns of an earlier process wait inside.
class Gateway {
 public:
  // May this gateway take questions, and with which models?
  struct Readiness {
    bool ready = false;
    std::string reason;                  // why not
    std::map<std::string, bool> models;  // every language model ever seen: can it answer?
  };
  using OnReadiness = std::function<void(const Readiness&)>;

  // Opens store and journal, and finds the turns that an earlier process left running. `metrics`
  // and `admission` must outlive the gateway's last call.
  static absl::StatusOr<std::unique_ptr<Gateway>> Open(const GatewayOptions& options,
                                                       Metrics& metrics, Admission& admission);
  ~Gateway();

  // Begins to watch the services behind and to go on with those turns; `on_readiness` runs on their
  // threads, one at a time, at every change until Stop.
  void Start(OnReadiness on_readiness);
  std::vector<grpc::Service*> services() { return {&chat_, &models_, &rollout_service_}; }
  const ApiKeys& keys() const { return *keys_; }
  // The same services over HTTP; `pages` are served beside them. To be served until Stop.
  std::unique_ptr<HttpFront> MakeHttpFront(std::map<std::string, HttpServer::Page> pages,
                                           bool hosts_checked) {
    return std::make_unique<HttpFront>(parts_, chat_, std::move(pages), hosts_checked);
  }

  // Breaks off the answers under way and waits a few seconds until they are stored, or left in the
  // journal for the next process.
  void Stop();

 private:
  Gateway(const GatewayOptions& options, Metrics& metrics, std::unique_ptr<ApiKeys> keys,
          std::unique_ptr<GatewayMetrics> gateway_metrics, std::unique_ptr<AnswerJournal> journal,
          std::unique_ptr<ConversationStore> store, Admission& admission);
  void TakeUpTurns();
  void Publish();
  // A thread of its own: answers that nobody reads, sessions that nobody uses.
  void KeepHouse();
  void ExpireSessions();

  const GatewayOptions options_;
  const std::unique_ptr<ApiKeys> keys_;
  const std::unique_ptr<GatewayMetrics> metrics_;
  const std::unique_ptr<AnswerJournal> journal_;
  const std::unique_ptr<ConversationStore> store_;
  SessionOwners owners_;
  TurnGate gate_;
  RecoveryLane recovery_;
  RequestMemory memory_;
  TransferMemory transfers_;
  ResumableCalls resumable_;
  PictureFetcher fetcher_;
  RunningTurns running_;

  Mutex publish_mutex_;  // keeps reports in order, held while one is made
  OnReadiness on_readiness_ LLAVA_GUARDED_BY(publish_mutex_);
  std::map<std::string, bool> models_seen_ LLAVA_GUARDED_BY(publish_mutex_);

  BackendPool vision_;
  BackendPool llm_;
  FeatureDrops drops_;
  ModelRouter router_;
  ModelAdmin admin_;
  StoppableCalls counts_;
  KeyLanes calls_, pages_;
  SendWatch sends_;
  TurnSamples samples_;
  RolloutGuard rollouts_;
  const TurnParts parts_;
  PictureWarmup warmup_;
  ChatServiceImpl chat_;
  ModelServiceImpl models_;
  RolloutServiceImpl rollout_service_;

  Mutex house_mutex_;
  CondVar house_changed_;
  bool closing_ LLAVA_GUARDED_BY(house_mutex_) = false;
  bool expiring_ LLAVA_GUARDED_BY(house_mutex_) = false;
  bool more_expired_ LLAVA_GUARDED_BY(house_mutex_) = false;  // than went the last time
  std::thread housekeeper_;
};

}  // namespace llava
