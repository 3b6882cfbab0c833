#pragma once

// A service behind the gateway: its channels, what it serves, and how its failures are told.

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "llava/v1/llm.grpc.pb.h"
#include "llava/v1/models.grpc.pb.h"
#include "llava/v1/vision.grpc.pb.h"
#include "server/gateway/feature_index.h"
#include "server/gateway/gateway_metrics.h"
#include "server/runtime/mutex.h"
#include "server/runtime/tls.h"

namespace llava {

// A service refused because it does not serve that version (tower) any more: nothing was done. That
// it lacks features is another matter.
bool IsVersionGone(const absl::Status& status);

// What a service said of its models, last time it was asked.
struct ModelTable {
  absl::Status status = absl::UnavailableError("not asked yet");  // OK: it answered
  std::vector<v1::ModelInfo> models;  // of the last good answer, also while the service is down
  // What no process has now and one may have again: processes that are down had it or were to load
  // it (and others are not down), or are about to load it. And the first reason.
  std::vector<v1::ModelInfo> away;
  absl::Status away_status;
  // Not OK: a process has never answered, so that nobody knows what it has; it may have anything.
  // OK again when it does not answer for long (of a BackendPool).
  absl::Status unheard;
};

// One process of a service. Asks it for its models on a thread of its own, every `period` and on
// demand: so a new version is routed to within `period`. Thread-safe.
class Backend {
 public:
  struct Names {
    std::string service;  // "vision": in metrics and messages
    std::string program;  // "llava-vision": what to start
    std::string flag;     // "--vision": what to check
  };

  // `tls` empty: an open connection. `authority`: the name under which it was found, if `address`
  // is a number.
  Backend(Names names, std::string address, GatewayMetrics& metrics, const TlsFiles& tls = {},
          std::chrono::milliseconds period = std::chrono::milliseconds(500),
          std::string authority = {});
  ~Backend();  // stops the thread; waits for the last lease and CallContext
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // Begins to ask; `on_change` runs on the thread whenever its state, or what it serves or is to
  // load, has changed.
  void Start(std::function<void()> on_change);

  // Keeps the backend alive; may be dropped on any thread, its own channels' included.
  std::shared_ptr<Backend> Lease();
  // Nothing is under way and nobody holds a lease.
  bool idle() const;

  const std::string& address() const { return address_; }
  // "llm 127.0.0.1:8021"
  std::string Describe() const { return names_.service + " " + address_; }
  const std::string& authority() const { return authority_; }

  v1::ModelService::Stub& models() { return *models_; }
  v1::VisionService::Stub& encoder() { return *encoder_; }
  v1::LlmService::Stub& generator() { return *generator_; }
  // For features, over a connection of its own: they must not hold up the answers.
  v1::LlmService::Stub& receiver() { return *receiver_; }
  // What it is believed to hold.
  FeatureIndex& features() { return features_; }

  ModelTable table() const;
  // It answered when it was asked last.
  bool up() const;
  // It has answered once.
  bool heard() const;
  CondVar::Clock::time_point made() const { return made_; }
  // Asks soon; `done` runs on the thread after an answer that was asked for after this call.
  void Refresh(std::function<void()> done = {});

  // What the client of the gateway is told about a failed call: an unreachable service is named
  // with address and remedy, a fault of the service with its address; complaints about the request
  // pass as they are. Counts the error.
  absl::Status Explain(const absl::Status& status);

  // How a call that did work ended. A service that asks for patience is left alone for that long;
  // one whose calls fail several times in a row is ejected: 10 s, longer each time it goes on.
  void Report(const absl::Status& status);
  // Neither left alone nor ejected at present.
  bool willing() const;

  // Answers that it is making for this gateway.
  std::atomic<int> running{0};

 private:
  friend class CallContext;

  void Acquire();
  void Release();
  void Loop();
  absl::StatusOr<v1::ListModelsResponse> Ask();
  // What to tell who wants one of them.
  absl::Status WhenLoaded(const std::vector<v1::ModelInfo>& coming) const;
  absl::Status Unreachable(const absl::Status& status) const;

  const Names names_;
  const std::string address_;
  const std::string authority_;
  GatewayMetrics& metrics_;
  const std::chrono::milliseconds period_;
  const CondVar::Clock::time_point made_ = CondVar::Clock::now();
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::ModelService::Stub> models_;
  const std::unique_ptr<v1::VisionService::Stub> encoder_;
  const std::unique_ptr<v1::LlmService::Stub> generator_, receiver_;
  FeatureIndex features_;
  std::function<void()> on_change_;

  mutable Mutex mutex_;
  CondVar changed_;
  ModelTable table_ LLAVA_GUARDED_BY(mutex_);
  bool asked_ LLAVA_GUARDED_BY(mutex_) = false;
  bool heard_ LLAVA_GUARDED_BY(mutex_) = false;
  bool wanted_ LLAVA_GUARDED_BY(mutex_) = false;
  bool stopping_ LLAVA_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* asking_ LLAVA_GUARDED_BY(mutex_) = nullptr;  // the call under way
  std::vector<std::function<void()>> waiting_ LLAVA_GUARDED_BY(mutex_);
  int calls_ LLAVA_GUARDED_BY(mutex_) = 0;      // contexts and leases alive
  int failures_ LLAVA_GUARDED_BY(mutex_) = 0;   // in a row
  int ejections_ LLAVA_GUARDED_BY(mutex_) = 0;  // in a row
  CondVar::Clock::time_point unwilling_until_ LLAVA_GUARDED_BY(mutex_){};
  std::thread thread_;
};

// The context of one asynchronous call to a backend, which outlives it.
//
// A context shares the channel, and gRPC stops its callback threads with the last channel of the
// process. Were a reaction to drop that one, such a thread would wait for itself (gRPC 1.51 aborts:
// "prior > 0"). So the backend keeps its channels until all contexts have gone, on any thread.
class CallContext {
 public:
  explicit CallContext(Backend& backend);
  ~CallContext();
  CallContext(const CallContext&) = delete;
  CallContext& operator=(const CallContext&) = delete;

  grpc::ClientContext* get() { return &*context_; }
  grpc::ClientContext* operator->() { return &*context_; }

 private:
  Backend& backend_;
  std::optional<grpc::ClientContext> context_;
};

}  // namespace llava
