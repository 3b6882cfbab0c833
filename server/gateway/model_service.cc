#include "server/gateway/model_service.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/runtime/mutex.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kStatusTimeout{5};

// GetModelStatus of all services, joined.
class StatusJoin : public std::enable_shared_from_this<StatusJoin> {
 public:
  StatusJoin(UnaryCall call, v1::GetModelStatusRequest request,
             v1::GetModelStatusResponse* response,
             const std::vector<std::shared_ptr<Backend>>& backends)
      : call_(std::move(call)), request_(std::move(request)), response_(response) {
    for (const auto& backend : backends) parts_.emplace_back(backend);
    left_ = parts_.size();
  }

  void Ask(std::chrono::system_clock::time_point deadline) {
    for (Part& part : parts_) {
      part.context->set_deadline(deadline);
      part.context->AddMetadata("x-request-id", call_.scope().request_id());
      part.backend->models().async()->GetModelStatus(
          part.context.get(), &request_, &part.response,
          [self = shared_from_this(), &part](const grpc::Status& status) {
            // Each service knows only its own models.
            part.known = status.error_code() != grpc::StatusCode::NOT_FOUND;
            self->OnAnswer(part.known ? part.backend->Explain(FromGrpc(status)) : absl::OkStatus());
          });
    }
  }

 private:
  struct Part {
    explicit Part(std::shared_ptr<Backend> asked) : backend(std::move(asked)), context(*backend) {}
    const std::shared_ptr<Backend> backend;
    CallContext context;
    v1::GetModelStatusResponse response;
    bool known = false;
  };

  void OnAnswer(const absl::Status& status) {
    {
      MutexLock lock(mutex_);
      if (failure_.ok()) failure_ = status;
      if (--left_ > 0) return;
    }
    if (!failure_.ok()) return call_.Finish(failure_);
    bool known = false;
    for (const Part& part : parts_) {
      known |= part.known;
      response_->mutable_versions()->MergeFrom(part.response.versions());
    }
    if (!known) {
      return call_.Finish(absl::NotFoundError(
          absl::StrCat("no model \"", request_.model().name(), "\" in any service")));
    }
    call_.Finish(absl::OkStatus());
  }

  const UnaryCall call_;
  const v1::GetModelStatusRequest request_;
  v1::GetModelStatusResponse* const response_;
  std::deque<Part> parts_;  // they cannot move
  Mutex mutex_;
  size_t left_ LLAVA_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest* request,
                                                       v1::ListModelsResponse* response) {
  const UnaryCall call("ModelService.ListModels", *context, parts_);
  if (auto status = call.scope().Enter(); !status.ok()) {
    call.Finish(status);
    return call.reactor();
  }
  for (const BackendPool* service : {&parts_.vision, &parts_.llm}) {
    const ModelTable table = service->table();
    if (!table.status.ok()) {
      call.Finish(table.status);
      return call.reactor();
    }
    for (const v1::ModelInfo& model : table.models) {
      if (request->name().empty() || request->name() == model.model().name()) {
        *response->add_models() = model;
      }
    }
  }
  call.Finish(absl::OkStatus());
  return call.reactor();
}

grpc::ServerUnaryReactor* ModelServiceImpl::GetModelStatus(grpc::CallbackServerContext* context,
                                                           const v1::GetModelStatusRequest* request,
                                                           v1::GetModelStatusResponse* response) {
  const UnaryCall call("ModelService.GetModelStatus", *context, parts_);
  if (auto status = call.scope().Enter(); !status.ok()) {
    call.Finish(status);
    return call.reactor();
  }
  const auto deadline =
      std::min(context->deadline(), std::chrono::system_clock::now() + kStatusTimeout);
  auto backends = parts_.vision.all();
  for (auto& backend : parts_.llm.all()) backends.push_back(std::move(backend));
  if (backends.empty()) {
    call.Finish(parts_.llm.table().status);
  } else {
    std::make_shared<StatusJoin>(call, *request, response, backends)->Ask(deadline);
  }
  return call.reactor();
}

grpc::ServerUnaryReactor* ModelServiceImpl::Unsupported(const std::string& method,
                                                        grpc::CallbackServerContext* context) {
  const UnaryCall call("ModelService." + method, *context, parts_);
  auto status = call.scope().Enter(KeyRole::kAdmin);
  if (status.ok()) {
    status = absl::UnimplementedError(
        absl::StrCat(method,
                     " is not available at the gateway in this build; call the ModelService of "
                     "llava-vision or llava-llm"));
  }
  call.Finish(status);
  return call.reactor();
}

grpc::ServerUnaryReactor* ModelServiceImpl::LoadModel(grpc::CallbackServerContext* context,
                                                      const v1::LoadModelRequest*,
                                                      v1::LoadModelResponse*) {
  return Unsupported("LoadModel", context);
}

grpc::ServerUnaryReactor* ModelServiceImpl::UnloadModel(grpc::CallbackServerContext* context,
                                                        const v1::UnloadModelRequest*,
                                                        v1::UnloadModelResponse*) {
  return Unsupported("UnloadModel", context);
}

grpc::ServerUnaryReactor* ModelServiceImpl::SetLabel(grpc::CallbackServerContext* context,
                                                     const v1::SetLabelRequest*,
                                                     v1::SetLabelResponse*) {
  return Unsupported("SetLabel", context);
}

grpc::ServerUnaryReactor* ModelServiceImpl::Rollback(grpc::CallbackServerContext* context,
                                                     const v1::RollbackRequest*,
                                                     v1::RollbackResponse*) {
  return Unsupported("Rollback", context);
}

}  // namespace llava
