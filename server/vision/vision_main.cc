#include <chrono>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/device/load_failure.h"
#include "server/runtime/logging.h"
#include "server/vision/vision_options.h"
#include "server/vision/vision_service.h"
#include "server/wire/fixed_model_service.h"

namespace {

constexpr char kProgram[] = "llava-vision";

}  // namespace

int main(int argc, char** argv) {
  const auto begin = std::chrono::steady_clock::now();
  llava::VisionOptions options;
  llava::Settings settings(kProgram, "Encodes pictures: the vision tower as a service");
  options.Declare(settings);
  if (const auto code = settings.Parse(argc, argv)) return *code;
  llava::InitLogging({"vision", options.process.log_level, options.process.log_format});

  llava::Metrics metrics("vision");
  // Before the process: its server is still there when loading fails, and needs its services.
  llava::FixedModelService models;
  std::unique_ptr<llava::VisionService> vision;
  llava::ServiceProcess process(kProgram, options.process, metrics);
  vision = std::make_unique<llava::VisionService>(process.admission(), metrics,
                                                  options.engine.limits.max_bytes);
  if (const int code = process.Start({vision.get(), &models},
                                     {"llava.v1.VisionService", "llava.v1.ModelService"})) {
    return code;
  }
  auto tower = llava::OpenTowerWorkers(options.tower);
  if (!tower.ok()) return llava::ReportLoadFailure(kProgram, tower.status());
  llava::VisionEngine engine(options.engine, *std::move(tower), metrics,
                             [&](const std::string& reason) {
                               models.SetFailed(reason);
                               process.SetReady(false, reason);
                             });
  if (const auto status = engine.WaitUntilReady(); !status.ok())
    return llava::ReportLoadFailure(kProgram, status);

  const llava::TowerInfo& info = engine.info();
  vision->SetEngine(&engine);
  models.SetReady(llava::TowerModelInfo(info), [&engine] {
    return llava::ModelLoad{static_cast<uint32_t>(engine.computing()),
                            static_cast<uint32_t>(engine.waiting()), engine.info().weight_bytes};
  });
  metrics
      .Gauge("llava_vision_model_info", "The tower that is served",
             {{"name", info.name},
              {"version", absl::StrCat(info.version)},
              {"digest", llava::ToHex(info.digest)},
              {"numerics", info.numerics}})
      .Set(1);
  process.SetReady(true);
  process.SetHealth(info.name, true);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  llava::LogInfo(absl::StrFormat("ready in %.1f s", took.count()),
                 {{"grpc", absl::StrCat(options.process.host, ":", process.port())},
                  {"metrics", absl::StrCat(options.process.host, ":", process.metrics_port())},
                  {"model", info.name},
                  {"version", absl::StrCat(info.version)},
                  {"digest", llava::ToHex(info.digest)},
                  {"device", info.device},
                  {"dtype", info.dtype},
                  {"workers", absl::StrCat(info.workers)}});
  return process.Run([&] { models.SetDraining(); }, [&] { engine.Stop(); });
}
