#include "server/gateway/model_service.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/model_admin.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

constexpr std::chrono::seconds kStatusTimeout{5};
// Reading a large model takes minutes.
constexpr std::chrono::hours kLoadTimeout{1};

absl::Status CheckModel(const std::string& field, const std::string& name) {
  if (!name.empty()) return absl::OkStatus();
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

// Hands the result over and notes who changed what.
template <typename Response>
ModelAdmin::Done<Response> Finish(const UnaryCall& call, const std::string& change,
                                  Response* response) {
  return [call, change, response](absl::StatusOr<Response> result) {
    LogInfo("models changed by a caller",
            {{"request_id", call.scope().request_id()},
             {"key", call.scope().caller().name()},
             {"change", change},
             {"result", result.ok() ? "done" : std::string(result.status().message())}});
    if (result.ok()) *response = *std::move(result);
    call.Finish(result.status());
  };
}

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
    using Id = std::tuple<std::string, uint64_t, std::string>;
    const auto id_of = [](const v1::ModelInfo& model) {
      return Id{model.model().name(), model.model().version(), model.model().digest()};
    };
    std::map<Id, std::vector<std::string>> processes;
    for (const auto& backend : service->all()) {
      const ModelTable own = backend->table();
      if (!own.status.ok()) continue;
      for (const v1::ModelInfo& model : own.models) {
        processes[id_of(model)].push_back(backend->Describe());
      }
    }
    for (const v1::ModelInfo& model : table.models) {
      if (!request->name().empty() && request->name() != model.model().name()) continue;
      v1::ModelInfo& listed = *response->add_models();
      listed = model;
      for (const std::string& each : processes[id_of(model)]) listed.add_processes(each);
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
  const UnaryCall call("ModelService.LoadModel", *context, parts_);
  absl::Status status = call.scope().Enter(KeyRole::kAdmin);
  if (status.ok()) status = CheckVersion(request->model());
  if (!status.ok()) {
    call.Finish(status);
    return call.reactor();
  }
  parts_.admin.Load(
      *request, CallOf(call, *context, kLoadTimeout),
      Finish(call, absl::StrCat("load ", request->model().name(), " ", request->model().version()),
             response));
  return call.reactor();
}

grpc::ServerUnaryReactor* ModelServiceImpl::UnloadModel(grpc::CallbackServerContext* context,
                                                        const v1::UnloadModelRequest* request,
                                                        v1::UnloadModelResponse* response) {
  const UnaryCall call("ModelService.UnloadModel", *context, parts_);
  absl::Status status = call.scope().Enter(KeyRole::kAdmin);
  if (status.ok()) status = CheckVersion(request->model());
  if (!status.ok()) {
    call.Finish(status);
    return call.reactor();
  }
  parts_.admin.Unload(
      *request, CallOf(call, *context, kLoadTimeout),
      Finish(call,
             absl::StrCat("unload ", request->model().name(), " ", request->model().version()),
             response));
  return call.reactor();
}

grpc::ServerUnaryReactor* ModelServiceImpl::SetLabel(grpc::CallbackServerContext* context,
                                                     const v1::SetLabelRequest* request,
                                                     v1::SetLabelResponse* response) {
  const UnaryCall call("ModelService.SetLabel", *context, parts_);
  absl::Status status = call.scope().Enter(KeyRole::kAdmin);
  if (status.ok()) status = CheckModel("name", request->name());
  if (status.ok() && request->label().empty()) {
    status = absl::InvalidArgumentError("label is empty; e.g. \"stable\" or \"canary\"");
  }
  if (!status.ok()) {
    call.Finish(status);
    return call.reactor();
  }
  parts_.admin.SetLabel(*request, CallOf(call, *context, kStatusTimeout),
                        Finish(call,
                               absl::StrCat("label ", request->name(), " ", request->label(), " ",
                                            request->version()),
                               response));
  return call.reactor();
}

grpc::ServerUnaryReactor* ModelServiceImpl::Rollback(grpc::CallbackServerContext* context,
                                                     const v1::RollbackRequest* request,
                                                     v1::RollbackResponse* response) {
  const UnaryCall call("ModelService.Rollback", *context, parts_);
  absl::Status status = call.scope().Enter(KeyRole::kAdmin);
  if (status.ok()) status = CheckModel("name", request->name());
  if (!status.ok()) {
    call.Finish(status);
    return call.reactor();
  }
  parts_.admin.Rollback(*request, CallOf(call, *context, kStatusTimeout),
                        Finish(call, absl::StrCat("roll back ", request->name()), response));
  return call.reactor();
}

}  // namespace llava
