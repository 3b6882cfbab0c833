#include "server/gateway/gateway.h"

#include <chrono>
#include <utility>

namespace llava {
namespace {

// After the drain timeout: time for broken-off answers to be stored.
constexpr std::chrono::seconds kStopTimeout{5};

}  // namespace

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Open(const GatewayOptions& options,
                                                       Metrics& metrics, Admission& admission) {
  auto keys = ApiKeys::Open(options.keys_file, metrics);
  if (!keys.ok()) return keys.status();
  auto gateway_metrics = std::make_unique<GatewayMetrics>(metrics);
  auto store = SessionStore::Open(options.data_dir, *gateway_metrics);
  if (!store.ok()) return store.status();
  return std::unique_ptr<Gateway>(new Gateway(options, *std::move(keys), std::move(gateway_metrics),
                                              *std::move(store), admission));
}

Gateway::Gateway(const GatewayOptions& options, Metrics& metrics, std::unique_ptr<ApiKeys> keys,
                 std::unique_ptr<GatewayMetrics> gateway_metrics,
                 std::unique_ptr<SessionStore> store, Admission& admission)
    : options_(options),
      keys_(std::move(keys)),
      metrics_(std::move(gateway_metrics)),
      store_(std::move(store)),
      owners_(*store_),
      gate_(options_.gate, metrics),
      admission_(admission),
      vision_({"vision", "llava-vision", "--vision"}, options_.vision, *metrics_,
              options_.backend_tls),
      llm_({"llm", "llava-llm", "--llm"}, options_.llm, *metrics_, options_.backend_tls),
      router_(vision_, llm_, options_.default_model),
      encoder_(v1::VisionService::NewStub(vision_.channel())),
      generator_(v1::LlmService::NewStub(llm_.channel())),
      receiver_(v1::LlmService::NewStub(llm_.bulk_channel())),
      parts_{options_,   *metrics_, *store_,   vision_,  llm_,   *encoder_, *generator_,
             *receiver_, router_,   features_, running_, *keys_, owners_,   gate_},
      chat_(parts_, admission),
      models_(parts_) {}

Gateway::~Gateway() = default;

void Gateway::Start(OnReadiness on_readiness) {
  {
    MutexLock lock(publish_mutex_);
    on_readiness_ = std::move(on_readiness);
  }
  vision_.Start([this] { Publish(); });
  llm_.Start([this] { Publish(); });
}

void Gateway::Publish() {
  MutexLock lock(publish_mutex_);
  if (!on_readiness_) return;
  for (auto& [name, serving] : models_seen_) serving = false;
  if (const auto models = router_.LanguageModels(); models.ok()) {
    for (const v1::ModelInfo& model : *models) {
      const std::string& name = model.model().name();
      models_seen_[name] = router_.Find(name, 0, /*pictures=*/true).ok();
    }
  }
  const absl::Status status = router_.Ready();
  on_readiness_({status.ok(), std::string(status.message()), models_seen_});
}

void Gateway::Stop() {
  gate_.Close();
  running_.BreakAll(TurnBreak::kShutdown);
  admission_.WaitUntilIdle(CondVar::Clock::now() + kStopTimeout);
  MutexLock lock(publish_mutex_);
  on_readiness_ = nullptr;
}

}  // namespace llava
