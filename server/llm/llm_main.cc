#include <chrono>
#include <cstdint>
#include <memory>

#include "server/device/device.h"
#include "server/lifecycle/lifecycle_service.h"
#include "server/lifecycle/model_manager.h"
#include "server/lifecycle/model_process.h"
#include "server/llm/disposal_threads.h"
#include "server/llm/llm_options.h"
#include "server/llm/llm_servable.h"
#include "server/runtime/logging.h"

namespace {

constexpr char kProgram[] = "llava-llm";
// How long features stay after PutFeatures at least: the promise of llm.proto.
constexpr std::chrono::seconds kPinTime{30};
// At the end, for versions that are being freed: longer only if a worker hangs.
constexpr std::chrono::seconds kDisposalTime{10};

}  // namespace

int main(int argc, char** argv) {
  const auto begin = std::chrono::steady_clock::now();
  llava::LlmOptions options;
  llava::Settings settings(kProgram, "Writes answers: projector and decoder as a service");
  options.Declare(settings);
  if (const auto code = settings.Parse(argc, argv)) return *code;
  llava::InitLogging({"llm", options.process.log_level, options.process.log_format});

  auto managed = options.lifecycle.Resolve(llava::Manifest::Kind::kLanguage);
  if (!managed.ok()) return llava::ReportLoadFailure(kProgram, managed.status());

  llava::Metrics metrics("llm");
  llava::FeatureStore store(options.feature_store_bytes, kPinTime, metrics);
  llava::DisposalThreads disposal;  // free versions until the end
  std::unique_ptr<llava::LlmService> llm;
  std::unique_ptr<llava::LlmServableLoader> loader;
  std::unique_ptr<llava::ModelManager> manager;
  std::unique_ptr<llava::LifecycleService> models;
  // Behind them: its server is still there when loading fails, and needs its services.
  llava::ServiceProcess process(kProgram, options.process, metrics);
  // Behind it, as CUDA has threads of its own, which must not take the signals either.
  if (options.lifecycle.memory_budget == 0) {
    const uint64_t bytes = llava::DeviceMemoryBudget(options.language.device);
    if (bytes > 0) managed->memory_budget = bytes;
  }
  llm = std::make_unique<llava::LlmService>(options.service, store, process.admission(), metrics);
  loader = std::make_unique<llava::LlmServableLoader>(options.ForLoader(*managed), *llm, store,
                                                      disposal, metrics);
  llava::ConnectHealth(*managed, process);
  manager = std::make_unique<llava::ModelManager>(*std::move(managed), *loader, metrics);
  models = std::make_unique<llava::LifecycleService>(*manager, options.lifecycle.admin());
  if (const int code = process.Start({llm.get(), models.get()},
                                     {"llava.v1.LlmService", "llava.v1.ModelService"})) {
    return code;
  }
  const auto stop_workers = [&] {
    return loader->StopAll() &&
           disposal.WaitUntilIdle(std::chrono::steady_clock::now() + kDisposalTime);
  };
  return llava::RunModelProcess({.program = kProgram,
                                 .begin = begin,
                                 .host = options.process.host,
                                 .stop_workers = stop_workers},
                                process, *manager);
}
