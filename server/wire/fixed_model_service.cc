#include "server/wire/fixed_model_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"

namespace llava {
namespace {

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, grpc::Status status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(std::move(status));
  return reactor;
}

grpc::ServerUnaryReactor* NoLifecycle(grpc::CallbackServerContext* context, const char* method) {
  return Answer(context,
                {grpc::StatusCode::UNIMPLEMENTED,
                 absl::StrCat("ModelService.", method,
                              ": this build serves the one version it was started with; loading, "
                              "labels and rollback come with the model lifecycle. Restart the "
                              "process with another --model")});
}

}  // namespace

FixedModelService::FixedModelService() {
  MutexLock lock(mutex_);
  Enter(v1::MODEL_STATE_LOADING, "loading");
}

void FixedModelService::Enter(v1::ModelState state, const std::string& message) {
  status_.set_state(state);
  status_.set_message(message);
  status_.set_load_progress(state == v1::MODEL_STATE_LOADING ? 0 : 1);
  *status_.mutable_since() = google::protobuf::util::TimeUtil::GetCurrentTime();
}

void FixedModelService::SetReady(v1::ModelInfo info, std::function<ModelLoad()> load) {
  MutexLock lock(mutex_);
  info_ = std::move(info);
  *status_.mutable_model() = info_.model();
  load_ = std::move(load);
  Enter(v1::MODEL_STATE_READY, "");
}

void FixedModelService::SetFailed(const std::string& message) {
  MutexLock lock(mutex_);
  Enter(v1::MODEL_STATE_FAILED, message);
}

void FixedModelService::SetDraining() {
  MutexLock lock(mutex_);
  Enter(v1::MODEL_STATE_DRAINING, "the process is draining");
}

grpc::Status FixedModelService::CheckName(const std::string& name) {
  if (name.empty() || name == info_.model().name()) return grpc::Status::OK;
  return {grpc::StatusCode::NOT_FOUND,
          info_.model().name().empty()
              ? absl::StrCat("model \"", name, "\" is not known here: nothing is loaded yet")
              : absl::StrCat("model \"", name, "\" is not served here; this process serves \"",
                             info_.model().name(), "\"")};
}

grpc::ServerUnaryReactor* FixedModelService::ListModels(grpc::CallbackServerContext* context,
                                                        const v1::ListModelsRequest* request,
                                                        v1::ListModelsResponse* response) {
  grpc::Status status;
  {
    MutexLock lock(mutex_);
    status = CheckName(request->name());
    if (status.ok() && !info_.model().name().empty()) *response->add_models() = info_;
  }
  return Answer(context, status);
}

grpc::ServerUnaryReactor* FixedModelService::GetModelStatus(
    grpc::CallbackServerContext* context, const v1::GetModelStatusRequest* request,
    v1::GetModelStatusResponse* response) {
  grpc::Status status;
  std::function<ModelLoad()> load;
  {
    MutexLock lock(mutex_);
    status = CheckName(request->model().name());
    const uint64_t wanted = request->model().version();
    if (status.ok() && (wanted == 0 || wanted == status_.model().version())) {
      *response->add_versions() = status_;
      load = load_;
    }
  }
  if (load) {
    const ModelLoad now = load();
    response->mutable_versions(0)->set_in_flight(now.in_flight);
    response->mutable_versions(0)->set_queued(now.queued);
    response->mutable_versions(0)->set_weight_bytes(now.weight_bytes);
  }
  return Answer(context, status);
}

grpc::ServerUnaryReactor* FixedModelService::LoadModel(grpc::CallbackServerContext* context,
                                                       const v1::LoadModelRequest*,
                                                       v1::LoadModelResponse*) {
  return NoLifecycle(context, "LoadModel");
}

grpc::ServerUnaryReactor* FixedModelService::UnloadModel(grpc::CallbackServerContext* context,
                                                         const v1::UnloadModelRequest*,
                                                         v1::UnloadModelResponse*) {
  return NoLifecycle(context, "UnloadModel");
}

grpc::ServerUnaryReactor* FixedModelService::SetLabel(grpc::CallbackServerContext* context,
                                                      const v1::SetLabelRequest*,
                                                      v1::SetLabelResponse*) {
  return NoLifecycle(context, "SetLabel");
}

grpc::ServerUnaryReactor* FixedModelService::Rollback(grpc::CallbackServerContext* context,
                                                      const v1::RollbackRequest*,
                                                      v1::RollbackResponse*) {
  return NoLifecycle(context, "Rollback");
}

}  // namespace llava
