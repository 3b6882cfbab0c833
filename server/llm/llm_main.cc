#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/device/device.h"
#include "server/device/load_failure.h"
#include "server/lifecycle/lifecycle_service.h"
#include "server/lifecycle/model_manager.h"
#include "server/llm/disposal_threads.h"
#include "server/llm/llm_options.h"
#include "server/llm/llm_servable.h"
#include "server/runtime/host_port.h"
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
  const bool on_gpus = !absl::StartsWith(options.language.device, "cpu");
  if (on_gpus && options.lifecycle.memory_budget == 0) {
    managed->memory_budget = llava::DeviceMemoryBudget(options.language.device);
  }

  llava::Metrics metrics("llm");
  llava::FeatureStore store(options.feature_store_bytes, kPinTime, metrics);
  llava::DisposalThreads disposal;  // free versions until the end
  std::unique_ptr<llava::LlmService> llm;
  std::unique_ptr<llava::LlmServableLoader> loader;
  std::unique_ptr<llava::ModelManager> manager;
  std::unique_ptr<llava::LifecycleService> models;
  // Behind them: its server is still there when loading fails, and needs its services.
  llava::ServiceProcess process(kProgram, options.process, metrics);
  llm = std::make_unique<llava::LlmService>(options.service, store, process.admission(), metrics);
  loader = std::make_unique<llava::LlmServableLoader>(options.ForLoader(), *llm, store, disposal,
                                                      metrics);
  std::set<std::string> served;  // the manager calls from one thread
  managed->on_serving = [&](const std::string& model, int versions) {
    process.SetHealth(model, versions > 0);
    if (versions > 0) {
      served.insert(model);
    } else {
      served.erase(model);
    }
    process.SetReady(!served.empty(), "no version is served");
  };
  managed->on_device_lost = [&](const std::string& reason) { process.Fail(reason); };
  manager = std::make_unique<llava::ModelManager>(*std::move(managed), *loader, metrics);
  models = std::make_unique<llava::LifecycleService>(*manager, options.lifecycle.admin());
  if (const int code = process.Start({llm.get(), models.get()},
                                     {"llava.v1.LlmService", "llava.v1.ModelService"})) {
    return code;
  }
  bool ended = true;
  const auto stop = [&] {
    manager->Stop();
    ended = loader->StopAll() &&
            disposal.WaitUntilIdle(std::chrono::steady_clock::now() + kDisposalTime);
  };
  const auto end_asked = [&] { return process.EndAsked(); };
  manager->Start();
  const auto status = manager->WaitUntilServing(end_asked);
  int code = 0;
  if (status.ok() || end_asked()) {
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (status.ok()) {
      llava::LogInfo(absl::StrFormat("ready in %.1f s", took.count()),
                     {{"grpc", llava::HostPort(options.process.host, process.port())},
                      {"metrics", llava::HostPort(options.process.host, process.metrics_port())},
                      {"max_running", absl::StrCat(options.engine.max_running)}});
    }
    code = process.Run([&] { manager->Drain(); }, stop);
  } else {
    stop();
    code = llava::ReportLoadFailure(kProgram, status);
  }
  if (!ended) llava::LogWarning("a worker hangs, the process ends without it");
  if (!ended || code == llava::kExitDeviceLost) {
    std::fflush(nullptr);
    std::_Exit(code);  // whoever tidies up would ask the device
  }
  return code;
}
