#include "server/llm/llm_servable.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/device/device.h"
#include "server/lifecycle/lifecycle_metrics.h"
#include "server/llm/generate_request.h"
#include "server/runtime/logging.h"
#include "server/runtime/seconds.h"
#include "server/wire/feature_key.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;

// Sessions are computed ahead for so long, and for a quarter of the time that the loading took.
constexpr std::chrono::seconds kPrewarmTime{1};
// Where nobody wants the answers any more: for what is under way in a device.
constexpr std::chrono::seconds kLastStep{10};

std::vector<std::shared_ptr<DeviceTurn>> TurnsOf(const std::string& device) {
  const auto devices = ParseDevices(device);
  std::vector<std::shared_ptr<DeviceTurn>> turns(devices.ok() ? devices->size() : 1);
  for (auto& turn : turns) turn = std::make_shared<DeviceTurn>();
  return turns;
}

constexpr uint64_t kLeastKvBytes = uint64_t{1} << 30;
// For each answer in the making: conversations of the longest kind that are found again.
constexpr uint64_t kKeptSequences = 16;

}  // namespace

uint64_t ChooseKvBytes(uint64_t device_bytes, const WorkerSize& size, int most, int served,
                       int sequences) {
  uint64_t room = 0;
  for (const int versions : {most, served, 1}) {
    if (room >= kLeastKvBytes) break;
    const uint64_t share = device_bytes / static_cast<uint64_t>(versions);
    room = share - std::min(share, size.fixed);
  }
  return std::min(std::max(room, kLeastKvBytes),
                  kKeptSequences * static_cast<uint64_t>(sequences) * size.kv_sequence);
}

LlmServable::LlmServable(std::unique_ptr<LlmEngine> engine, v1::ModelInfo info, FeatureStore& store,
                         std::shared_ptr<RecentSessions> recent, Metrics& metrics)
    : engine_(std::move(engine)),
      backend_(std::move(info), *engine_, store, std::move(recent)),
      metrics_(metrics) {
  ShowModelInfo(metrics_, backend_.info, true);
}

LlmServable::~LlmServable() { ShowModelInfo(metrics_, backend_.info, false); }

ServableLoad LlmServable::load() const {
  ServableLoad load;
  load.in_flight = static_cast<uint32_t>(engine_->running());
  load.queued = static_cast<uint32_t>(engine_->waiting());
  load.weight_bytes = engine_->weight_bytes();
  load.nan_outputs = engine_->nan_outputs();
  load.failure = engine_->failure();
  return load;
}

absl::Status LlmServable::SetWorkers(int n, const std::function<bool()>& stop) {
  return engine_->SetWorkers(n, stop);
}

LlmServableLoader::LlmServableLoader(Options options, LlmService& service, FeatureStore& store,
                                     DisposalThreads& disposal, Metrics& metrics)
    : options_(std::move(options)),
      service_(service),
      store_(store),
      disposal_(disposal),
      metrics_(metrics),
      turns_(TurnsOf(options_.language.device)) {}

absl::StatusOr<WorkerSize> LlmServableLoader::SizeOf(const VersionRef& version) const {
  LanguageOptions language = options_.language;
  language.model = version.folder.string();
  const int rows = options_.engine.prefill_chunk + options_.engine.max_running;
  return EstimateWorker(language, rows, options_.engine.max_running);
}

uint64_t LlmServableLoader::KvBytes(const WorkerSize& size) const {
  if (options_.language.kv_bytes > 0) return options_.language.kv_bytes;
  return ChooseKvBytes(options_.device_bytes, size, options_.most_versions,
                       options_.served_versions, options_.engine.max_running);
}

absl::StatusOr<uint64_t> LlmServableLoader::EstimateBytes(const VersionRef& version, int workers) {
  const auto size = SizeOf(version);
  if (!size.ok()) return size.status();
  return (size->fixed + KvBytes(*size)) *
         static_cast<uint64_t>(workers > 0 ? workers : this->workers());
}

std::vector<int> LlmServableLoader::DevicesByUse() {
  std::vector<int> uses(turns_.size(), 0), devices(turns_.size());
  std::iota(devices.begin(), devices.end(), 0);
  MutexLock lock(mutex_);
  for (const auto& weak : loaded_) {
    const auto servable = weak.lock();
    if (!servable) continue;
    const std::vector<int>& taken = servable->engine().devices();
    for (int i = 0; i < servable->workers(); ++i) ++uses[static_cast<size_t>(taken[i])];
    devices.assign(taken.rbegin(), taken.rend());  // the one it gives up first comes first
  }
  std::stable_sort(devices.begin(), devices.end(), [&](int a, int b) {
    return uses[static_cast<size_t>(a)] < uses[static_cast<size_t>(b)];
  });
  return devices;
}

bool LlmServableLoader::ServesAny() {
  MutexLock lock(mutex_);
  std::erase_if(loaded_, [](const auto& servable) { return servable.expired(); });
  return !loaded_.empty();
}

std::vector<WarmPrompt> LlmServableLoader::WarmPrompts(const LlmBackend& backend,
                                                       const RecentSessions& recent) {
  std::vector<WarmPrompt> prompts;
  for (const RecentSessions::Session& session : recent.List()) {
    const auto prompt = CountPrompt(session.messages, backend);
    const auto answer = backend.prompts.OwnIds(session.answer, "answer");
    if (!prompt.ok() || !answer.ok()) continue;  // of another template, tower or tokenizer
    WarmPrompt warm;
    warm.picture_tokens = prompt->picture_tokens;
    warm.ids = prompt->ids;
    warm.ids.insert(warm.ids.end(), answer->begin(), answer->end());
    const auto tokens = prompt->tokens() + static_cast<int64_t>(answer->size());
    if (tokens > static_cast<int64_t>(backend.info.context_tokens())) continue;
    warm.cache_salt = session.cache_salt;
    for (const v1::FeatureKey& key : prompt->images) {
      warm.feature_keys.push_back(FeatureKeyToBytes(key));
      warm.features.push_back(store_.Get(warm.feature_keys.back()));
    }
    if (std::count(warm.features.begin(), warm.features.end(), nullptr) > 0) continue;
    prompts.push_back(std::move(warm));
  }
  return prompts;
}

absl::StatusOr<std::shared_ptr<Servable>> LlmServableLoader::Load(const VersionRef& version,
                                                                  const LoadOptions& options) {
  const auto begin = Clock::now();
  LanguageOptions language = options_.language;
  language.model = version.folder.string();
  if (language.kv_bytes == 0) {
    const auto size = SizeOf(version);
    if (!size.ok()) return size.status();
    language.kv_bytes = KvBytes(*size);
  }
  const LoadPace pace = {.in_background = ServesAny(),
                         .bytes_per_second = static_cast<double>(options.bytes_per_second),
                         .stop = options.stop};
  const auto note_lost = [this](const absl::Status& status, const std::string& given_up) {
    MutexLock lock(mutex_);
    if (device_lost_.empty()) device_lost_ = given_up;
    if (worked_ && absl::IsFailedPrecondition(status)) {
      device_lost_ = std::string(status.message());
    }
  };
  absl::StatusOr<LoadedLanguage> model = options_.open(language, pace);
  if (!model.ok()) {
    note_lost(model.status(), "");
    return model.status();
  }
  model->info.name = version.name;
  model->info.version = version.version;
  const LanguageInfo info = model->info;
  auto engine = std::make_unique<LlmEngine>(
      options_.engine, *std::move(model), metrics_,
      LlmEngine::Places{.devices = DevicesByUse(), .workers = options.workers, .turns = turns_});
  bool warming = false;
  const auto progress = [&](double share) {
    options.progress(share);
    if (share >= 1 && !std::exchange(warming, true)) options.warming();
  };
  // Whoever loads must not wait for a thread that hangs.
  const auto discard = [&](auto owner, LlmEngine& its) {
    its.Stop(kLastStep);
    if (its.hangs()) disposal_.Post([last = owner.release()] { delete last; });
  };
  if (auto status = engine->WaitUntilReady(options.stop, progress); !status.ok()) {
    LlmEngine& its = *engine;
    // While another version is served the storage may be what hangs: a device shows in its steps.
    const std::string load_hung = ServesAny() ? "" : its.load_hung();
    note_lost(status, its.given_up().empty() ? load_hung : its.given_up());
    discard(std::move(engine), its);
    return status;
  }
#ifdef __GLIBC__
  malloc_trim(0);  // what the reading needed
#endif

  const auto recent = service_.RecentOf(version.name, static_cast<size_t>(options_.prewarm));
  v1::ModelInfo served = LanguageModelInfo(info, options_.context_tokens, options_.defaults);
  auto made =
      std::make_unique<LlmServable>(std::move(engine), std::move(served), store_, recent, metrics_);
  const auto loaded = Clock::now();
  size_t prewarmed = 0;
  if (options.predecessor) {
    std::vector<WarmPrompt> prompts = WarmPrompts(made->backend(), *recent);
    prewarmed = prompts.size();
    made->engine().Prewarm(std::move(prompts), loaded + kPrewarmTime + (loaded - begin) / 4,
                           options.stop);
    if (options.stop()) {
      LlmEngine& its = made->engine();
      discard(std::move(made), its);
      return absl::CancelledError("the loading was stopped");
    }
  }
  const auto seconds = [](Clock::duration time) { return absl::StrFormat("%.2f", Seconds(time)); };
  LogInfo("loaded", {{"model", info.name},
                     {"version", absl::StrCat(info.version)},
                     {"digest", ToHex(info.digest)},
                     {"device", info.device},
                     {"dtype", info.dtype},
                     {"context_tokens", absl::StrCat(made->info().context_tokens())},
                     {"max_running", absl::StrCat(options_.engine.max_running)},
                     {"kv_tokens", absl::StrCat(made->engine().kv_capacity_tokens())},
                     {"self_test_drift", absl::StrCat(made->self_test_drift())},
                     {"load_s", seconds(loaded - begin)},
                     {"sessions_ahead", absl::StrCat(prewarmed)},
                     {"ahead_s", seconds(Clock::now() - loaded)}});
  const std::shared_ptr<LlmServable> servable(
      made.release(),
      [&disposal = disposal_](LlmServable* last) { disposal.Post([last] { delete last; }); });
  MutexLock lock(mutex_);
  worked_ = true;
  loaded_.push_back(servable);
  return servable;
}

std::string LlmServableLoader::device_lost() {
  if (absl::StartsWith(options_.language.device, "cpu")) return "";
  MutexLock lock(mutex_);
  for (const auto& weak : loaded_) {
    const auto servable = weak.lock();
    if (device_lost_.empty() && servable) device_lost_ = servable->engine().given_up();
  }
  return device_lost_;
}

void LlmServableLoader::Route(std::shared_ptr<Servable> servable) {
  const auto own = std::static_pointer_cast<LlmServable>(std::move(servable));
  service_.Route(std::shared_ptr<const LlmBackend>(own, &own->backend()));
}

void LlmServableLoader::Unroute(const std::string& name, uint64_t version) {
  service_.Unroute(name, version);
}

bool LlmServableLoader::StopAll() {
  std::vector<std::shared_ptr<LlmServable>> all;
  {
    MutexLock lock(mutex_);
    for (const auto& weak : loaded_) {
      if (auto servable = weak.lock()) all.push_back(std::move(servable));
    }
  }
  bool ended = true;
  for (const auto& servable : all) {
    servable->engine().Stop(kLastStep);
    ended = ended && !servable->engine().hangs();
  }
  return ended;
}

}  // namespace llava
