#include <chrono>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/device/load_failure.h"
#include "server/llm/llm_options.h"
#include "server/llm/llm_service.h"
#include "server/runtime/logging.h"
#include "server/wire/fixed_model_service.h"

namespace {

constexpr char kProgram[] = "llava-llm";
// How long features stay after PutFeatures at least: the promise of llm.proto.
constexpr std::chrono::seconds kPinTime{30};

}  // namespace

int main(int argc, char** argv) {
  const auto begin = std::chrono::steady_clock::now();
  llava::LlmOptions options;
  llava::Settings settings(kProgram, "Writes answers: projector and decoder as a service");
  options.Declare(settings);
  if (const auto code = settings.Parse(argc, argv)) return *code;
  llava::InitLogging({"llm", options.process.log_level, options.process.log_format});

  llava::Metrics metrics("llm");
  // Before the process: its server is still there when loading fails, and needs its services.
  llava::FixedModelService models;
  std::unique_ptr<llava::LlmService> llm;
  llava::ServiceProcess process(kProgram, options.process, metrics);
  llm = std::make_unique<llava::LlmService>(options.service, process.admission(), metrics);
  if (const int code =
          process.Start({llm.get(), &models}, {"llava.v1.LlmService", "llava.v1.ModelService"})) {
    return code;
  }
  auto model = llava::OpenLanguageWorkers(options.language);
  if (!model.ok()) return llava::ReportLoadFailure(kProgram, model.status());
  llava::FeatureStore store(options.feature_store_bytes, kPinTime, metrics);
  llava::LlmEngine engine(options.engine, *std::move(model), metrics,
                          [&](const std::string& reason) {
                            models.SetFailed(reason);
                            process.SetReady(false, reason);
                          });
  if (const auto status = engine.WaitUntilReady(); !status.ok())
    return llava::ReportLoadFailure(kProgram, status);

  const llava::LanguageInfo& info = engine.info();
  const auto backend = std::make_shared<const llava::LlmBackend>(
      llava::LanguageModelInfo(info, engine.image_tokens(), options.context_tokens,
                               options.DefaultSampling()),
      engine, store);
  llm->Route(backend);
  models.SetReady(backend->info, [&engine] {
    return llava::ModelLoad{static_cast<uint32_t>(engine.running()),
                            static_cast<uint32_t>(engine.waiting()), engine.weight_bytes()};
  });
  metrics
      .Gauge("llava_llm_model_info", "The language model that is served",
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
                  {"context_tokens", absl::StrCat(backend->info.context_tokens())},
                  {"kv_tokens", absl::StrCat(engine.kv_capacity_tokens())},
                  {"max_running", absl::StrCat(options.engine.max_running)}});
  return process.Run([&] { models.SetDraining(); }, [&] { engine.Stop(); });
}
