#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/digest/sha256.h"
#include "server/device/device.h"
#include "server/lifecycle/lifecycle_service.h"
#include "server/lifecycle/model_manager.h"
#include "server/lifecycle/model_process.h"
#include "server/runtime/logging.h"
#include "server/vision/inference_service.h"
#include "server/vision/tower_loader.h"
#include "server/vision/vision_options.h"
#include "server/vision/vision_service.h"

namespace {

constexpr char kProgram[] = "llava-vision";

std::unique_ptr<llava::FeatureDisk> OpenDisk(const llava::VisionOptions& options,
                                             llava::Metrics& metrics) {
  if (options.feature_cache_dir.empty()) return nullptr;
  return std::make_unique<llava::FeatureDisk>(
      llava::FeatureDisk::Options{.folder = options.feature_cache_dir,
                                  .budget_bytes = options.feature_cache_disk_bytes},
      metrics);
}

llava::RepositoryCalls CallsOf(llava::ModelManager& manager, bool admin) {
  llava::RepositoryCalls calls;
  calls.statuses = [&manager] {
    auto statuses = manager.Statuses("", 0);
    return statuses.ok() ? *std::move(statuses) : std::vector<llava::v1::ModelVersionStatus>();
  };
  if (!admin) return calls;
  calls.load = [&manager](const std::string& name, uint64_t version, auto done) {
    return manager.Load(name, version, std::move(done));
  };
  calls.unload = [&manager](const std::string& name, uint64_t version, auto done) {
    return manager.Unload(name, version, std::move(done));
  };
  calls.forget = [&manager](uint64_t call) { return manager.Forget(call); };
  return calls;
}

void TellTowers(const llava::TowerSet& towers) {
  for (const auto& tower : towers.List()) {
    const llava::TowerInfo& info = tower->engine().info();
    llava::LogInfo("serving", {{"model", tower->info().model().name()},
                               {"version", absl::StrCat(tower->info().model().version())},
                               {"digest", llava::ToHex(info.digest)},
                               {"device", info.device},
                               {"dtype", info.dtype},
                               {"workers", absl::StrCat(info.workers)}});
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto begin = std::chrono::steady_clock::now();
  llava::VisionOptions options;
  llava::Settings settings(kProgram, "Encodes pictures: the vision tower as a service");
  options.Declare(settings);
  if (const auto code = settings.Parse(argc, argv)) return *code;
  llava::InitLogging({"vision", options.process.log_level, options.process.log_format});

  auto lifecycle = options.lifecycle.Resolve(llava::Manifest::Kind::kTower);
  if (!lifecycle.ok()) return llava::ReportLoadFailure(kProgram, lifecycle.status());

  llava::Metrics metrics("vision");
  // Made after the process, which blocks the signals for all threads; gone after it, because its
  // server calls the services until it has gone itself.
  std::unique_ptr<llava::FeatureCache> cache;
  std::unique_ptr<llava::VisionServableLoader> loader;
  std::unique_ptr<llava::ModelManager> manager;
  std::unique_ptr<llava::LifecycleService> models;
  std::unique_ptr<llava::VisionService> vision;
  std::unique_ptr<llava::InferenceService> inference;
  llava::ServiceProcess process(kProgram, options.process, metrics);
  // Behind it, as CUDA has threads of its own, which must not take the signals either.
  if (options.lifecycle.memory_budget == 0) {
    const uint64_t bytes = llava::DeviceMemoryBudget(options.tower.device);
    if (bytes > 0) lifecycle->memory_budget = bytes;
  }

  llava::ConnectHealth(*lifecycle, process);
  cache = std::make_unique<llava::FeatureCache>(options.feature_cache_bytes, metrics,
                                                OpenDisk(options, metrics));
  loader =
      std::make_unique<llava::VisionServableLoader>(options.tower, options.engine, *cache, metrics);
  manager = std::make_unique<llava::ModelManager>(*std::move(lifecycle), *loader, metrics);
  models = std::make_unique<llava::LifecycleService>(*manager, options.lifecycle.admin());
  vision = std::make_unique<llava::VisionService>(loader->towers(), *cache, process.admission(),
                                                  metrics);
  inference = std::make_unique<llava::InferenceService>(
      loader->towers(), CallsOf(*manager, options.lifecycle.admin()), process.admission(), metrics);
  if (const int code = process.Start(
          {vision.get(), inference.get(), models.get()},
          {"llava.v1.VisionService", "llava.v1.ModelService", "inference.GRPCInferenceService"})) {
    return code;
  }
  return llava::RunModelProcess({.program = kProgram,
                                 .begin = begin,
                                 .host = options.process.host,
                                 .on_ready = [&] { TellTowers(loader->towers()); },
                                 .stop_workers = [&] { return loader->Stop(); }},
                                process, *manager);
}
