#pragma once

// Changes of what is loaded and labelled, at every process behind the gateway.

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/models.pb.h"
#include "server/gateway/backend_pool.h"
#include "server/gateway/model_router.h"
#include "server/gateway/stoppable_calls.h"

namespace llava {

// A change goes to all processes of each service that serves the model; when nobody does yet, to
// all there are, and those of a service in which it is unknown do not count. It may be repeated:
// where it was made before, it changes nothing, and so several processes may share a repository.
// When it fails at one process, the others keep it; the error has that one's code, names it and
// says how many did it. Callbacks run on threads of gRPC or of a BackendPool, after the gateway has
// asked the services for their models again. Thread-safe; to be stopped before its end.
class ModelAdmin {
 public:
  template <typename T>
  using Done = std::function<void(absl::StatusOr<T>)>;
  struct Call {
    std::chrono::system_clock::time_point deadline;
    std::string request_id;
  };

  ModelAdmin(BackendPool& vision, BackendPool& llm, ModelRouter& router)
      : vision_(vision), llm_(llm), router_(router) {}

  // Ends what is under way and refuses what comes, with UNAVAILABLE and RetryInfo: a load may take
  // longer than a process that wants to end has.
  void Stop() { calls_.Stop(); }

  // Adds the models that are served to `response`, those called `name` or all if it is empty, each
  // with the processes that have it. UNAVAILABLE: one of the services is down.
  absl::Status List(const std::string& name, v1::ListModelsResponse* response) const;
  // States of all processes one after the other, each with its process; those that do not answer
  // are listed. NOT_FOUND: nobody knows the model. UNAVAILABLE: nobody answers.
  void GetStatus(const v1::GetModelStatusRequest& request, const Call& call,
                 Done<v1::GetModelStatusResponse> done);
  void Load(const v1::LoadModelRequest& request, const Call& call,
            Done<v1::LoadModelResponse> done);
  void Unload(const v1::UnloadModelRequest& request, const Call& call,
              Done<v1::UnloadModelResponse> done);
  void SetLabel(const v1::SetLabelRequest& request, const Call& call,
                Done<v1::SetLabelResponse> done);
  // One process steps back, the others are told where to: processes that share a repository would
  // step back once each. Not to be repeated, unlike the other changes: FAILED_PRECONDITION when it
  // was done and not all could be told, or may have been done by a process that was lost.
  void Rollback(const v1::RollbackRequest& request, const Call& call,
                Done<v1::RollbackResponse> done);

 private:
  struct Target {
    std::shared_ptr<Backend> backend;
    const BackendPool* pool;
    bool known;  // to its service
  };
  std::vector<Target> Targets(const std::string& name) const;
  template <typename Request, typename Response>
  class FanOut;
  // `merge` sees the answers of the processes that count, in order.
  template <typename Request, typename Response, typename Method>
  void Change(const std::string& name, const Request& request, const Call& call, Method method,
              std::function<Response(const std::vector<const Response*>&)> merge,
              Done<Response> done);
  // Asks one after the other until a process has stepped back.
  void StepBack(std::shared_ptr<std::vector<Target>> targets, size_t next, absl::Status why,
                const v1::RollbackRequest& request, const Call& call,
                Done<v1::RollbackResponse> done);

  BackendPool& vision_;
  BackendPool& llm_;
  ModelRouter& router_;

  StoppableCalls calls_;
};

}  // namespace llava
