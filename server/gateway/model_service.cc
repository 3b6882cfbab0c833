#include "server/gateway/model_service.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/mutex.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kStatusTimeout{5};

// GetModelStatus of both services, joined.
class StatusJoin : public std::enable_shared_from_this<StatusJoin> {
 public:
  StatusJoin(UnaryCall call, v1::GetModelStatusRequest request,
             v1::GetModelStatusResponse* response, Backend& vision, Backend& llm)
      : call_(std::move(call)),
        request_(std::move(request)),
        response_(response),
        parts_{Part(vision), Part(llm)} {}

  void Ask(v1::ModelService::Stub& stub, int index,
           std::chrono::system_clock::time_point deadline) {
    Part& part = parts_[index];
    part.context->set_deadline(deadline);
    part.context->AddMetadata("x-request-id", call_.scope().request_id());
    stub.async()->GetModelStatus(
        part.context.get(), &request_, &part.response,
        [self = shared_from_this(), &part](const grpc::Status& status) {
          // Each service knows only its own models.
          part.known = status.error_code() != grpc::StatusCode::NOT_FOUND;
          self->OnAnswer(part.known ? part.backend.Explain(FromGrpc(status)) : absl::OkStatus());
        });
  }

 private:
  struct Part {
    explicit Part(Backend& asked) : backend(asked), context(asked) {}
    Backend& backend;
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
    if (!parts_[0].known && !parts_[1].known) {
      return call_.Finish(absl::NotFoundError(
          absl::StrCat("no model \"", request_.model().name(), "\" in any service")));
    }
    for (const Part& part : parts_) {
      response_->mutable_versions()->MergeFrom(part.response.versions());
    }
    call_.Finish(absl::OkStatus());
  }

  const UnaryCall call_;
  const v1::GetModelStatusRequest request_;
  v1::GetModelStatusResponse* const response_;
  Part parts_[2];
  Mutex mutex_;
  int left_ LLAVA_GUARDED_BY(mutex_) = 2;
  absl::Status failure_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace

ModelServiceImpl::ModelServiceImpl(const TurnParts& parts)
    : parts_(parts),
      vision_(v1::ModelService::NewStub(parts.vision.channel())),
      llm_(v1::ModelService::NewStub(parts.llm.channel())) {}

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest* request,
                                                       v1::ListModelsResponse* response) {
  const UnaryCall call("ModelService.ListModels", *context, parts_);
  if (auto status = call.scope().Enter(); !status.ok()) {
    call.Finish(status);
    return call.reactor();
  }
  for (const Backend* backend : {&parts_.vision, &parts_.llm}) {
    const ModelTable table = backend->table();
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
  auto join = std::make_shared<StatusJoin>(call, *request, response, parts_.vision, parts_.llm);
  join->Ask(*vision_, 0, deadline);
  join->Ask(*llm_, 1, deadline);
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
