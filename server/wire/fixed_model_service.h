#pragma once

// ModelService of a process that serves the one version it was started with.

#include <cstdint>
#include <functional>
#include <string>

#include "llava/v1/models.grpc.pb.h"
#include "server/runtime/mutex.h"

namespace llava {

// What a version is doing, read at each GetModelStatus. `weight_bytes`: resident bytes.
struct ModelLoad {
  uint32_t in_flight = 0;
  uint32_t queued = 0;
  uint64_t weight_bytes = 0;
};

// LOADING after construction, then READY or FAILED; the calls that change what is loaded are
// refused with UNIMPLEMENTED. Thread-safe.
class FixedModelService : public v1::ModelService::CallbackService {
 public:
  FixedModelService();

  // From now on `info` is listed and READY; `load` is called from gRPC threads.
  void SetReady(v1::ModelInfo info, std::function<ModelLoad()> load);
  // The version stops being READY, e.g. when the last worker died.
  void SetFailed(const std::string& message);
  void SetDraining();

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModelStatus(grpc::CallbackServerContext* context,
                                           const v1::GetModelStatusRequest* request,
                                           v1::GetModelStatusResponse* response) override;
  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context,
                                      const v1::LoadModelRequest* request,
                                      v1::LoadModelResponse* response) override;
  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context,
                                        const v1::UnloadModelRequest* request,
                                        v1::UnloadModelResponse* response) override;
  grpc::ServerUnaryReactor* SetLabel(grpc::CallbackServerContext* context,
                                     const v1::SetLabelRequest* request,
                                     v1::SetLabelResponse* response) override;
  grpc::ServerUnaryReactor* Rollback(grpc::CallbackServerContext* context,
                                     const v1::RollbackRequest* request,
                                     v1::RollbackResponse* response) override;

 private:
  void Enter(v1::ModelState state, const std::string& message) LLAVA_REQUIRES(mutex_);
  // NOT_FOUND if `name` (empty: any) is not the model's.
  grpc::Status CheckName(const std::string& name) LLAVA_REQUIRES(mutex_);

  Mutex mutex_;
  v1::ModelInfo info_ LLAVA_GUARDED_BY(mutex_);
  v1::ModelVersionStatus status_ LLAVA_GUARDED_BY(mutex_);
  std::function<ModelLoad()> load_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
