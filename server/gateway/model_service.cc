#include "server/gateway/model_service.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/model_admin.h"
#include "server/runtime/logging.h"
#include "server/wire/name_size.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kStatusTimeout{5};
// Reading a large model takes minutes.
constexpr std::chrono::hours kLoadTimeout{1};

absl::Status CheckModel(const std::string& field, const std::string& name) {
  if (!name.empty()) return CheckModelBytes(field, name);
  return absl::InvalidArgumentError(absl::StrCat(field, " is empty; name a model"));
}

absl::Status CheckVersion(const v1::ModelVersion& model) {
  if (auto status = CheckModel("model.name", model.name()); !status.ok()) return status;
  if (model.version() != 0) return absl::OkStatus();
  return absl::InvalidArgumentError("model.version is 0; say which version");
}

ModelAdmin::Call CallOf(const UnaryCall& call, const grpc::CallbackServerContext& context,
                        std::chrono::seconds timeout) {
  return {std::min(context.deadline(), std::chrono::system_clock::now() + timeout),
          call.scope().request_id()};
}

// A change that only an admin may make, once the request was `checked`; notes who changed `what`.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* Change(const TurnParts& parts, const std::string& method,
                                 grpc::CallbackServerContext& context, const absl::Status& checked,
                                 const std::string& what, std::chrono::seconds timeout,
                                 void (ModelAdmin::*change)(const Request&, const ModelAdmin::Call&,
                                                            ModelAdmin::Done<Response>),
                                 const Request& request, Response* response) {
  const UnaryCall call("ModelService." + method, context, parts, request, *response);
  absl::Status status = call.Enter(KeyRole::kAdmin);
  if (status.ok()) status = checked;
  if (!status.ok()) return call.Finished(status);
  (parts.admin.*change)(
      request, CallOf(call, context, timeout),
      [call, what, response](absl::StatusOr<Response> result) {
        LogInfo("models changed by a caller",
                {{"request_id", call.scope().request_id()},
                 {"key", call.scope().caller().name()},
                 {"change", what},
                 {"result", result.ok() ? "done" : std::string(result.status().message())}});
        if (result.ok()) *response = *std::move(result);
        call.Finish(result.status());
      });
  return call.reactor();
}

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest* request,
                                                       v1::ListModelsResponse* response) {
  const UnaryCall call("ModelService.ListModels", *context, parts_, *request, *response);
  absl::Status status = call.Enter();
  if (status.ok()) status = CheckModelBytes("name", request->name());
  if (status.ok()) status = parts_.admin.List(request->name(), response);
  return call.Finished(status);
}

grpc::ServerUnaryReactor* ModelServiceImpl::GetModelStatus(grpc::CallbackServerContext* context,
                                                           const v1::GetModelStatusRequest* request,
                                                           v1::GetModelStatusResponse* response) {
  const UnaryCall call("ModelService.GetModelStatus", *context, parts_, *request, *response);
  absl::Status status = call.Enter();
  if (status.ok()) status = CheckModelBytes("model.name", request->model().name());
  if (!status.ok()) return call.Finished(status);
  parts_.admin.GetStatus(*request, CallOf(call, *context, kStatusTimeout),
                         [call, response](absl::StatusOr<v1::GetModelStatusResponse> joined) {
                           if (joined.ok()) *response = *std::move(joined);
                           call.Finish(joined.status());
                         });
  return call.reactor();
}

grpc::ServerUnaryReactor* ModelServiceImpl::LoadModel(grpc::CallbackServerContext* context,
                                                      const v1::LoadModelRequest* request,
                                                      v1::LoadModelResponse* response) {
  const v1::ModelVersion& model = request->model();
  return Change(parts_, "LoadModel", *context, CheckVersion(model),
                absl::StrCat("load ", model.name(), " ", model.version()), kLoadTimeout,
                &ModelAdmin::Load, *request, response);
}

grpc::ServerUnaryReactor* ModelServiceImpl::UnloadModel(grpc::CallbackServerContext* context,
                                                        const v1::UnloadModelRequest* request,
                                                        v1::UnloadModelResponse* response) {
  const v1::ModelVersion& model = request->model();
  return Change(parts_, "UnloadModel", *context, CheckVersion(model),
                absl::StrCat("unload ", model.name(), " ", model.version()), kLoadTimeout,
                &ModelAdmin::Unload, *request, response);
}

grpc::ServerUnaryReactor* ModelServiceImpl::SetLabel(grpc::CallbackServerContext* context,
                                                     const v1::SetLabelRequest* request,
                                                     v1::SetLabelResponse* response) {
  absl::Status checked = CheckModel("name", request->name());
  if (checked.ok() && request->label().empty()) {
    checked = absl::InvalidArgumentError("label is empty; e.g. \"stable\" or \"canary\"");
  }
  if (checked.ok()) checked = CheckLabelBytes("label", request->label());
  const std::string what =
      absl::StrCat("label ", request->name(), " ", request->label(), " ", request->version());
  return Change(parts_, "SetLabel", *context, checked, what, kStatusTimeout, &ModelAdmin::SetLabel,
                *request, response);
}

grpc::ServerUnaryReactor* ModelServiceImpl::Rollback(grpc::CallbackServerContext* context,
                                                     const v1::RollbackRequest* request,
                                                     v1::RollbackResponse* response) {
  return Change(parts_, "Rollback", *context, CheckModel("name", request->name()),
                absl::StrCat("roll back ", request->name()), kStatusTimeout, &ModelAdmin::Rollback,
                *request, response);
}

}  // namespace llava
