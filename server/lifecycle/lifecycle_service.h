#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "llava/v1/models.grpc.pb.h"
#include "server/lifecycle/model_manager.h"
#include "server/lifecycle/waiting_call.h"
#include "server/runtime/task_threads.h"

namespace llava {

// Why the labels of a model cannot be changed: writing into its folder failed with `error` (errno).
// FAILED_PRECONDITION where this process may not write, whatever forbids it: PERMISSION_DENIED
// would say that the caller's key lacks the role. NOT_FOUND, else UNAVAILABLE.
absl::Status LabelsRefused(const std::filesystem::path& folder, int error);

// llava.v1.ModelService over a manager. LoadModel and UnloadModel answer when it is done; a caller
// that gives up, or whose deadline passes, stops waiting and nothing else. SetLabel and Rollback
// change labels.json of the repository, for all processes that watch it, and are taken over at
// once here.
//
// `admin` false: these four are refused with PERMISSION_DENIED (--admin-calls refuse). The service
// itself knows no keys: who may reach it is decided by address and certificates (docs/access.md).
//
// Thread-safe. Made before the server, and destroyed after it; the manager must outlive it.
class LifecycleService : public v1::ModelService::CallbackService {
 public:
  LifecycleService(ModelManager& manager, bool admin) : manager_(manager), admin_(admin) {}

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
  WaitingCall* NewWaitingCall(v1::ModelVersionStatus* status);
  // Runs a change of marks on the thread for it, which may wait for disk and locks, and ends the
  // call with its result.
  grpc::ServerUnaryReactor* ChangeMarks(grpc::CallbackServerContext* context,
                                        const std::string& name,
                                        std::function<absl::Status()> change);

  ModelManager& manager_;
  const bool admin_;
  TaskThreads marks_{1, 64};  // last: its tasks use the fields above
};

}  // namespace llava
