#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/llm.grpc.pb.h"
#include "server/gateway/backend.h"

namespace llava {

// One Generate call to an LLM service, whose load and health it keeps. Callbacks run on gRPC
// threads, one after the other, `on_done` last and exactly once; they must not block.
class GenerateCall : public grpc::ClientReadReactor<v1::GenerateResponse>,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  struct Callbacks {
    // The service has the request. May come while an event is told, from another thread.
    std::function<void()> on_arrived;
    // Not OK: the answer makes no sense. The call is cancelled, and that is how it is reported.
    std::function<absl::Status(v1::GenerateResponse&)> on_event;
    std::function<void(absl::Status)> on_done;
  };

  static std::shared_ptr<GenerateCall> Create(Backend& llm, v1::GenerateRequest request,
                                              std::chrono::system_clock::time_point deadline,
                                              Callbacks callbacks);
  // Once.
  void Start();
  // Thread-safe, also before Start; `on_done` follows with CANCELLED unless the call has just
  // ended.
  void Cancel() { context_->TryCancel(); }

 private:
  GenerateCall(Backend& llm, v1::GenerateRequest request, Callbacks callbacks)
      : llm_(llm), request_(std::move(request)), callbacks_(std::move(callbacks)), context_(llm) {}

  void OnReadInitialMetadataDone(bool ok) override {
    if (ok) callbacks_.on_arrived();
  }
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  Backend& llm_;
  const v1::GenerateRequest request_;
  Callbacks callbacks_;
  CallContext context_;
  v1::GenerateResponse response_;
  absl::Status refusal_;                // of an event
  std::shared_ptr<GenerateCall> self_;  // until OnDone
};

}  // namespace llava
