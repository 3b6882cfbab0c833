#include "server/lifecycle/lifecycle_service.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/repository.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "server/wire/name_size.h"

namespace llava {
namespace {

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

absl::Status CheckWritable(const std::filesystem::path& folder) {
  if (access(folder.c_str(), W_OK) == 0) return absl::OkStatus();
  return LabelsRefused(folder, errno);
}

absl::Status AdminOnly(bool admin) {
  if (admin) return absl::OkStatus();
  return absl::PermissionDeniedError(
      "this process takes no changes of its models over the network (--admin-calls refuse)");
}

}  // namespace

absl::Status LabelsRefused(const std::filesystem::path& folder, int error) {
  const std::string message =
      absl::StrCat(folder.string(), ": labels cannot be written here: ", std::strerror(error),
                   "; use llava-model label on a host that may write");
  switch (error) {
    case EROFS:
    case EACCES:  // of a folder that is mounted read-only, too, where its owner is somebody else
    case EPERM:
      return absl::FailedPreconditionError(message);
    case ENOENT:
      return absl::NotFoundError(message);
    default:
      return absl::UnavailableError(message);
  }
}

grpc::ServerUnaryReactor* LifecycleService::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest* request,
                                                       v1::ListModelsResponse* response) {
  auto list = manager_.List(request->name());
  if (!list.ok()) return Answer(context, list.status());
  *response = *std::move(list);
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* LifecycleService::GetModelStatus(grpc::CallbackServerContext* context,
                                                           const v1::GetModelStatusRequest* request,
                                                           v1::GetModelStatusResponse* response) {
  auto statuses = manager_.Statuses(request->model().name(), request->model().version());
  if (!statuses.ok()) return Answer(context, statuses.status());
  for (v1::ModelVersionStatus& status : *statuses) *response->add_versions() = std::move(status);
  return Answer(context, absl::OkStatus());
}

WaitingCall* LifecycleService::NewWaitingCall(v1::ModelVersionStatus* status) {
  return new WaitingCall([this](uint64_t number) { return manager_.Forget(number); }, 1, status);
}

grpc::ServerUnaryReactor* LifecycleService::LoadModel(grpc::CallbackServerContext* context,
                                                      const v1::LoadModelRequest* request,
                                                      v1::LoadModelResponse* response) {
  if (const auto status = AdminOnly(admin_); !status.ok()) return Answer(context, status);
  auto* call = NewWaitingCall(response->mutable_status());
  call->WaitFor(manager_.Load(request->model().name(), request->model().version(), call->Answer()));
  return call;
}

grpc::ServerUnaryReactor* LifecycleService::UnloadModel(grpc::CallbackServerContext* context,
                                                        const v1::UnloadModelRequest* request,
                                                        v1::UnloadModelResponse* response) {
  if (const auto status = AdminOnly(admin_); !status.ok()) return Answer(context, status);
  auto* call = NewWaitingCall(response->mutable_status());
  call->WaitFor(
      manager_.Unload(request->model().name(), request->model().version(), call->Answer()));
  return call;
}

grpc::ServerUnaryReactor* LifecycleService::SetLabel(grpc::CallbackServerContext* context,
                                                     const v1::SetLabelRequest* request,
                                                     v1::SetLabelResponse* response) {
  return ChangeMarks(context, request->name(), [this, request, response]() -> absl::Status {
    auto checked = CheckLabelBytes("label", request->label());
    if (!checked.ok()) return checked;
    ModelRepository repository(manager_.root());
    const std::vector<uint64_t> versions = repository.Versions(request->name());
    if (request->version() != 0 &&
        !std::binary_search(versions.begin(), versions.end(), request->version())) {
      return absl::NotFoundError(
          absl::StrCat("model \"", request->name(), "\" has no version ", request->version()));
    }
    response->set_previous_version(
        repository.SetLabel(request->name(), request->label(), request->version()));
    LogInfo("label set", {{"model", request->name()},
                          {"label", request->label()},
                          {"version", absl::StrCat(request->version())},
                          {"before", absl::StrCat(response->previous_version())}});
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* LifecycleService::Rollback(grpc::CallbackServerContext* context,
                                                     const v1::RollbackRequest* request,
                                                     v1::RollbackResponse* response) {
  return ChangeMarks(context, request->name(), [this, request, response]() -> absl::Status {
    uint64_t stable = 0;
    try {
      stable = ModelRepository(manager_.root()).Rollback(request->name());
    } catch (const std::invalid_argument& error) {
      return absl::FailedPreconditionError(error.what());  // nothing to go back to
    }
    response->mutable_stable()->set_name(request->name());
    response->mutable_stable()->set_version(stable);
    LogInfo("rolled back", {{"model", request->name()}, {"stable", absl::StrCat(stable)}});
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* LifecycleService::ChangeMarks(grpc::CallbackServerContext* context,
                                                        const std::string& name,
                                                        std::function<absl::Status()> change) {
  if (const auto status = AdminOnly(admin_); !status.ok()) return Answer(context, status);
  if (manager_.root().empty()) {
    return Answer(context, absl::FailedPreconditionError(
                               "this process serves a folder that is in no model repository: "
                               "there is no place for labels"));
  }
  if (auto status = CheckModelBytes("name", name); !status.ok()) return Answer(context, status);
  if (!manager_.Knows(name)) {
    return Answer(context, absl::NotFoundError(
                               absl::StrCat("model \"", name, "\" is not served by this process")));
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto job = [this, name, reactor, change = std::move(change)] {
    absl::Status status = CheckWritable(manager_.root() / name);
    if (status.ok()) {
      try {
        status = change();
      } catch (...) {
        status = FromException(std::current_exception());
      }
    }
    if (status.ok()) manager_.LookNow();
    reactor->Finish(ToGrpc(status));
  };
  if (!marks_.Post(job)) {
    reactor->Finish(ToGrpc(
        OverloadedError("too many changes of labels wait for the disk", std::chrono::seconds(1))));
  }
  return reactor;
}

}  // namespace llava
