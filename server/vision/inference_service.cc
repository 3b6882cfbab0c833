#include "server/vision/inference_service.h"

#include <chrono>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/runtime/build_info.h"
#include "server/runtime/status.h"
#include "server/vision/infer_request.h"

namespace llava {
namespace {

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                 const absl::Status& status = absl::OkStatus()) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

const char* RepositoryState(v1::ModelState state) {
  switch (state) {
    case v1::MODEL_STATE_READY:
      return "READY";
    case v1::MODEL_STATE_LOADING:
    case v1::MODEL_STATE_WARMING:
      return "LOADING";
    case v1::MODEL_STATE_DRAINING:
      return "UNLOADING";
    default:
      return "UNAVAILABLE";
  }
}

bool IsLoaded(v1::ModelState state) {
  return state == v1::MODEL_STATE_READY || state == v1::MODEL_STATE_LOADING ||
         state == v1::MODEL_STATE_WARMING;
}

void Set(const EncodeStatistics::Sum& sum, inference::StatisticDuration* duration) {
  duration->set_count(sum.count);
  duration->set_ns(static_cast<uint64_t>(std::llround(sum.seconds * 1e9)));
}

void DescribeStatistics(const VisionServable& tower, inference::ModelStatistics& statistics) {
  const VisionEngine& engine = tower.engine();
  const EncodeStatistics all = engine.statistics();
  statistics.set_name(tower.info().model().name());
  statistics.set_version(absl::StrCat(tower.info().model().version()));
  statistics.set_last_inference(static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(all.last_request.time_since_epoch())
          .count()));
  statistics.set_inference_count(all.encoded);
  auto& stats = *statistics.mutable_inference_stats();
  Set(all.success, stats.mutable_success());
  Set(all.failure, stats.mutable_fail());
  Set(all.queue, stats.mutable_queue());
  Set(all.decode, stats.mutable_compute_input());
  Set(all.compute, stats.mutable_compute_infer());
  Set(all.cache_hit, stats.mutable_cache_hit());
  Set(all.cache_miss, stats.mutable_cache_miss());
  uint64_t executions = 0;
  for (const auto& [size, sum] : all.batches) {
    executions += sum.count;
    auto& batch = *statistics.add_batch_stats();
    batch.set_batch_size(size);
    Set(sum, batch.mutable_compute_infer());
  }
  statistics.set_execution_count(executions);
  auto& memory = *statistics.add_memory_usage();
  memory.set_type(engine.info().device.starts_with("cuda") ? "GPU" : "CPU");
  memory.set_byte_size(tower.load().weight_bytes);
}

}  // namespace

absl::StatusOr<std::shared_ptr<VisionServable>> InferenceService::Find(
    const std::string& name, const std::string& version) const {
  uint64_t number = 0;
  if (!version.empty() && (!absl::SimpleAtoi(version, &number) || number == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("model version \"", version, "\" is not a number"));
  }
  if (auto tower = towers_.Find(name, number)) return tower;
  std::string known;
  for (const auto& tower : towers_.List()) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", tower->info().model().name(), " ",
                    tower->info().model().version());
  }
  return absl::NotFoundError(
      absl::StrCat("model \"", name, "\"", version.empty() ? "" : " version ", version,
                   " is not served here; there is ", known.empty() ? "none yet" : known));
}

grpc::ServerUnaryReactor* InferenceService::ServerLive(Context* context,
                                                       const inference::ServerLiveRequest*,
                                                       inference::ServerLiveResponse* response) {
  response->set_live(true);
  return Answer(context);
}

grpc::ServerUnaryReactor* InferenceService::ServerReady(Context* context,
                                                        const inference::ServerReadyRequest*,
                                                        inference::ServerReadyResponse* response) {
  response->set_ready(!admission_.draining() && !towers_.List().empty());
  return Answer(context);
}

grpc::ServerUnaryReactor* InferenceService::ModelReady(Context* context,
                                                       const inference::ModelReadyRequest* request,
                                                       inference::ModelReadyResponse* response) {
  const auto tower = Find(request->name(), request->version());
  response->set_ready(!admission_.draining() && tower.ok() && (*tower)->engine().failure().empty());
  return Answer(context);
}

grpc::ServerUnaryReactor* InferenceService::ServerMetadata(
    Context* context, const inference::ServerMetadataRequest*,
    inference::ServerMetadataResponse* response) {
  response->set_name("llava-vision");
  response->set_version(BuildVersion());
  for (const char* extension : {"model_configuration", "model_repository", "statistics"}) {
    response->add_extensions(extension);
  }
  return Answer(context);
}

grpc::ServerUnaryReactor* InferenceService::ModelMetadata(
    Context* context, const inference::ModelMetadataRequest* request,
    inference::ModelMetadataResponse* response) {
  const auto found = Find(request->name(), request->version());
  if (!found.ok()) return Answer(context, found.status());
  response->set_name(request->name());
  for (const auto& tower : towers_.List()) {
    if (tower->info().model().name() != request->name()) continue;
    response->add_versions(absl::StrCat(tower->info().model().version()));
  }
  DescribeTensors((*found)->engine().info(), response);
  return Answer(context);
}

grpc::ServerUnaryReactor* InferenceService::ModelConfig(
    Context* context, const inference::ModelConfigRequest* request,
    inference::ModelConfigResponse* response) {
  const auto found = Find(request->name(), request->version());
  if (!found.ok()) return Answer(context, found.status());
  const VisionEngine& engine = (*found)->engine();
  response->mutable_config()->set_name(request->name());
  DescribeConfig(engine.info(), engine.options(), engine.workers(), response->mutable_config());
  return Answer(context);
}

grpc::ServerUnaryReactor* InferenceService::ModelStatistics(
    Context* context, const inference::ModelStatisticsRequest* request,
    inference::ModelStatisticsResponse* response) {
  if (!request->name().empty()) {
    const auto found = Find(request->name(), request->version());
    if (!found.ok()) return Answer(context, found.status());
    if (!request->version().empty()) {
      DescribeStatistics(**found, *response->add_model_stats());
      return Answer(context);
    }
  }
  for (const auto& tower : towers_.List()) {
    if (!request->name().empty() && tower->info().model().name() != request->name()) continue;
    DescribeStatistics(*tower, *response->add_model_stats());
  }
  return Answer(context);
}

absl::Status InferenceService::CheckRepository(const std::string& repository_name) const {
  if (repository_name.empty()) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("no repository \"", repository_name, "\"; the only one has no name"));
}

grpc::ServerUnaryReactor* InferenceService::RepositoryIndex(
    Context* context, const inference::RepositoryIndexRequest* request,
    inference::RepositoryIndexResponse* response) {
  if (auto status = CheckRepository(request->repository_name()); !status.ok()) {
    return Answer(context, status);
  }
  for (const v1::ModelVersionStatus& version : repository_.statuses()) {
    if (request->ready() && version.state() != v1::MODEL_STATE_READY) continue;
    auto& model = *response->add_models();
    model.set_name(version.model().name());
    model.set_version(absl::StrCat(version.model().version()));
    model.set_state(RepositoryState(version.state()));
    model.set_reason(version.message());
  }
  return Answer(context);
}

grpc::ServerUnaryReactor* InferenceService::RepositoryModelLoad(
    Context* context, const inference::RepositoryModelLoadRequest* request,
    inference::RepositoryModelLoadResponse*) {
  if (auto status = CheckRepository(request->repository_name()); !status.ok()) {
    return Answer(context, status);
  }
  if (!repository_.load) {
    return Answer(context, absl::PermissionDeniedError("loading is not allowed (--admin-calls)"));
  }
  if (!request->parameters().empty()) {
    return Answer(context, absl::InvalidArgumentError(
                               absl::StrCat("parameter \"", request->parameters().begin()->first,
                                            "\": a version is loaded as it is in the repository")));
  }
  auto* call = new WaitingCall(repository_.forget);
  call->WaitFor(repository_.load(request->model_name(), 0, call->Answer()));
  return call;
}

grpc::ServerUnaryReactor* InferenceService::RepositoryModelUnload(
    Context* context, const inference::RepositoryModelUnloadRequest* request,
    inference::RepositoryModelUnloadResponse*) {
  if (auto status = CheckRepository(request->repository_name()); !status.ok()) {
    return Answer(context, status);
  }
  if (!repository_.unload) {
    return Answer(context, absl::PermissionDeniedError("unloading is not allowed (--admin-calls)"));
  }
  // All of them: another version would stand in for one that is taken away alone.
  std::vector<uint64_t> versions;
  bool loaded = false;
  for (const v1::ModelVersionStatus& version : repository_.statuses()) {
    if (version.model().name() != request->model_name()) continue;
    versions.push_back(version.model().version());
    loaded = loaded || IsLoaded(version.state());
  }
  if (!loaded) {
    return Answer(context, absl::NotFoundError(absl::StrCat(
                               "no version of model \"", request->model_name(), "\" is loaded")));
  }
  auto* call = new WaitingCall(repository_.forget, versions.size());
  for (const uint64_t version : versions) {
    call->WaitFor(repository_.unload(request->model_name(), version, call->Answer()));
  }
  return call;
}

}  // namespace llava
