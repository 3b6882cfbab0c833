#include "server/gateway/rollout_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/rollout_guard.h"
#include "server/runtime/logging.h"
#include "server/wire/name_size.h"

namespace llava {

absl::Status RolloutServiceImpl::CheckModel(const std::string& name) const {
  const auto models = parts_.router.LanguageModels();
  if (!models.ok()) return models.status();
  const bool known = std::any_of(models->begin(), models->end(), [&](const v1::ModelInfo& each) {
    return each.model().name() == name;
  });
  if (known) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("no version of a model \"", name, "\" is served"));
}

grpc::ServerUnaryReactor* RolloutServiceImpl::GetRollout(grpc::CallbackServerContext* context,
                                                         const v1::GetRolloutRequest* request,
                                                         v1::GetRolloutResponse* response) {
  const UnaryCall call("GetRollout", *context, parts_, *request, *response);
  absl::Status status = call.Enter();
  if (status.ok()) status = CheckModelBytes("name", request->name());
  if (status.ok()) {
    auto reports = parts_.rollouts.Report(request->name());
    if (reports.empty() && !request->name().empty()) status = CheckModel(request->name());
    for (v1::Rollout& report : reports) *response->add_rollouts() = std::move(report);
  }
  return call.Finished(status);
}

grpc::ServerUnaryReactor* RolloutServiceImpl::SetCanaryShare(
    grpc::CallbackServerContext* context, const v1::SetCanaryShareRequest* request,
    v1::SetCanaryShareResponse* response) {
  const UnaryCall call("SetCanaryShare", *context, parts_, *request, *response);
  absl::Status status = call.Enter(KeyRole::kAdmin);
  if (status.ok() && !(request->share() >= 0 && request->share() <= 1)) {
    status = absl::InvalidArgumentError("share must be from 0 to 1");
  }
  if (status.ok()) status = CheckModelBytes("name", request->name());
  if (status.ok()) status = CheckModel(request->name());
  if (status.ok()) {
    response->set_previous_share(parts_.router.SetCanaryShare(request->name(), request->share()));
    LogInfo("canary share set", {{"model", request->name()},
                                 {"share", absl::StrCat(request->share())},
                                 {"key", call.scope().caller().name()}});
  }
  return call.Finished(status);
}

}  // namespace llava
