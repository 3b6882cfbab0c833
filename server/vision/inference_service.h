#pragma once

// inference.GRPCInferenceService: the towers for clients of KServe and Triton.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "inference/open_inference.grpc.pb.h"
#include "llava/v1/models.pb.h"
#include "server/lifecycle/waiting_call.h"
#include "server/runtime/metrics.h"
#include "server/runtime/service_process.h"
#include "server/vision/tower_set.h"

namespace llava {

// What the repository calls need of the process. A change is refused with PERMISSION_DENIED if its
// function is not set.
struct RepositoryCalls {
  // All versions that are known, of all models.
  std::function<std::vector<v1::ModelVersionStatus>()> statuses;
  // As in ModelManager.
  using Change =
      std::function<uint64_t(const std::string& name, uint64_t version, ModelManager::OnDone done)>;
  Change load, unload;
  WaitingCall::Forget forget;
};

// Thread-safe. What it is given must outlive it.
class InferenceService : public inference::GRPCInferenceService::CallbackService {
 public:
  InferenceService(const TowerSet& towers, RepositoryCalls repository, Admission& admission,
                   Metrics& metrics)
      : towers_(towers),
        repository_(std::move(repository)),
        admission_(admission),
        metrics_(metrics) {}

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* ServerLive(Context* context, const inference::ServerLiveRequest* request,
                      inference::ServerLiveResponse* response) override;
  Reactor* ServerReady(Context* context, const inference::ServerReadyRequest* request,
                       inference::ServerReadyResponse* response) override;
  Reactor* ModelReady(Context* context, const inference::ModelReadyRequest* request,
                      inference::ModelReadyResponse* response) override;
  Reactor* ServerMetadata(Context* context, const inference::ServerMetadataRequest* request,
                          inference::ServerMetadataResponse* response) override;
  Reactor* ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                         inference::ModelMetadataResponse* response) override;
  Reactor* ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                       inference::ModelConfigResponse* response) override;
  Reactor* ModelInfer(Context* context, const inference::ModelInferRequest* request,
                      inference::ModelInferResponse* response) override;
  Reactor* ModelStatistics(Context* context, const inference::ModelStatisticsRequest* request,
                           inference::ModelStatisticsResponse* response) override;
  Reactor* RepositoryIndex(Context* context, const inference::RepositoryIndexRequest* request,
                           inference::RepositoryIndexResponse* response) override;
  Reactor* RepositoryModelLoad(Context* context,
                               const inference::RepositoryModelLoadRequest* request,
                               inference::RepositoryModelLoadResponse* response) override;
  Reactor* RepositoryModelUnload(Context* context,
                                 const inference::RepositoryModelUnloadRequest* request,
                                 inference::RepositoryModelUnloadResponse* response) override;

 private:
  class InferCall;
  // NOT_FOUND: no such model or version here; INVALID_ARGUMENT: the version is no number.
  absl::StatusOr<std::shared_ptr<VisionServable>> Find(const std::string& name,
                                                       const std::string& version) const;
  absl::Status CheckRepository(const std::string& repository_name) const;

  const TowerSet& towers_;
  const RepositoryCalls repository_;
  Admission& admission_;
  Metrics& metrics_;
};

}  // namespace llava
