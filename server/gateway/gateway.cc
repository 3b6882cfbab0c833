#include "server/gateway/gateway.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/session_store.h"
#include "server/gateway/turn_runner.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

// After the drain timeout: time for broken-off answers to be stored.
constexpr std::chrono::seconds kStopTimeout{5};
// At a time: a part of what may wait for the store, and pages that may each hold some megabytes.
constexpr size_t kCallsOfKey = 256, kPagesOfKey = 16, kWaitingOfKey = 4096;
// How often unused sessions are looked for, at least.
constexpr std::chrono::seconds kExpiryPeriod{10};

// False: of an earlier run of a turn that was asked anew, which the journal, never synced, may
// still have.
bool IsOf(const JournalledAnswer& answer, const UnfinishedTurn& turn) {
  const bool is_dated = answer.asked != JournalledAnswer().asked;
  return answer.seed == turn.sampling.seed() && (!is_dated || answer.asked == turn.terms.asked);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Open(const GatewayOptions& options,
                                                       Metrics& metrics, Admission& admission) {
  auto keys = ApiKeys::Open(options.keys_file, metrics);
  if (!keys.ok()) return keys.status();
  auto gateway_metrics = std::make_unique<GatewayMetrics>(metrics);
  SessionStore::Options store_options;
  store_options.limits = {
      .turns_per_session = options.max_turns_per_session,
      .images_per_session = options.max_images_per_session,
      .of_owner = [raw = keys->get()](const std::string& owner) { return raw->LimitsOf(owner); }};
  auto store = SessionStore::Open(options.data_dir, *gateway_metrics, store_options);
  if (!store.ok()) return store.status();
  auto journal =
      AnswerJournal::Open(std::filesystem::path(options.data_dir) / "journal", *gateway_metrics);
  if (!journal.ok()) return journal.status();
  std::unique_ptr<Gateway> gateway(new Gateway(options, metrics, *std::move(keys),
                                               std::move(gateway_metrics), *std::move(journal),
                                               *std::move(store), admission));
  gateway->TakeUpTurns();
  gateway->housekeeper_ = std::thread([raw = gateway.get()] { raw->KeepHouse(); });
  return gateway;
}

Gateway::Gateway(const GatewayOptions& options, Metrics& metrics, std::unique_ptr<ApiKeys> keys,
                 std::unique_ptr<GatewayMetrics> gateway_metrics,
                 std::unique_ptr<AnswerJournal> journal, std::unique_ptr<ConversationStore> store,
                 Admission& admission)
    : options_(options),
      keys_(std::move(keys)),
      metrics_(std::move(gateway_metrics)),
      journal_(std::move(journal)),
      store_(std::move(store)),
      owners_(*store_),
      gate_(options_.gate, metrics),
      memory_(options_.request_bytes, metrics),
      transfers_(options_.transfer_bytes, metrics),
      resumable_(options_.resume_grace),
      fetcher_(options_.picture_urls, options_.max_image_bytes, *metrics_),
      vision_({"vision", "llava-vision", "--vision"}, options_.vision, *metrics_,
              options_.backend_tls, options_.continue_timeout),
      llm_({"llm", "llava-llm", "--llm"}, options_.llm, *metrics_, options_.backend_tls,
           options_.continue_timeout),
      drops_(vision_, llm_),
      router_(vision_, llm_, options_.default_model, options_.canary_share),
      admin_(vision_, llm_, router_),
      calls_(kCallsOfKey, kWaitingOfKey),
      pages_(kPagesOfKey, kWaitingOfKey),
      rollouts_(options_.rollout, router_, admin_, samples_, *metrics_),
      parts_{.options = options_,
             .metrics = *metrics_,
             .admission = admission,
             .store = *store_,
             .journal = *journal_,
             .drops = drops_,
             .router = router_,
             .running = running_,
             .warmup = warmup_,
             .keys = *keys_,
             .owners = owners_,
             .gate = gate_,
             .samples = samples_,
             .admin = admin_,
             .counts = counts_,
             .calls = calls_,
             .pages = pages_,
             .sends = sends_,
             .rollouts = rollouts_,
             .resumable = resumable_,
             .fetcher = fetcher_,
             .recovery = recovery_,
             .memory = memory_,
             .transfers = transfers_},
      warmup_(parts_),
      chat_(parts_),
      models_(parts_),
      rollout_service_(parts_) {}

Gateway::~Gateway() {
  {
    MutexLock lock(house_mutex_);
    closing_ = true;
    house_changed_.NotifyAll();
  }
  if (housekeeper_.joinable()) housekeeper_.join();
  MutexLock lock(house_mutex_);
  while (expiring_) house_changed_.Wait(house_mutex_);  // it uses what goes before the store
}

void Gateway::TakeUpTurns() {
  std::map<std::string, JournalledAnswer> journalled;
  for (JournalledAnswer& answer : journal_->TakeRecovered()) {
    journalled[answer.turn_id] = std::move(answer);
  }
  for (UnfinishedTurn& turn : store_->TakeUnfinished()) {
    std::optional<JournalledAnswer> answer;
    if (auto found = journalled.find(turn.turn_id);
        found != journalled.end() && IsOf(found->second, turn)) {
      answer = std::move(found->second);
      journalled.erase(found);
    }
    metrics_->turns_taken_up_total.Increment();
    TurnRunner::CreateRecovered(parts_, std::move(turn), std::move(answer))->Start();
  }
  for (const auto& [turn_id, answer] : journalled) journal_->End(answer.id);
}

void Gateway::KeepHouse() {
  using std::chrono::milliseconds;
  const milliseconds period =
      std::clamp(options_.resume_grace / 4, milliseconds(20), milliseconds(1000));
  const milliseconds expiry_period =
      options_.session_ttl.count() > 0
          ? std::clamp<milliseconds>(options_.session_ttl / 4, period, kExpiryPeriod)
          : kExpiryPeriod;
  auto next_expiry = CondVar::Clock::now() + expiry_period;
  while (true) {
    bool more = false;
    {
      MutexLock lock(house_mutex_);
      const auto end = CondVar::Clock::now() + period;
      while (!closing_ && house_changed_.WaitUntil(house_mutex_, end)) {
      }
      if (closing_) return;
      more = more_expired_;
    }
    running_.CheckReaders();
    resumable_.Expire();
    sends_.CheckAll(SendWatch::Clock::now() - options_.send_patience);
    if (CondVar::Clock::now() < next_expiry) {
      if (more) ExpireSessions();
      continue;
    }
    next_expiry = CondVar::Clock::now() + expiry_period;
    // Each rush leaves holes in another of malloc's arenas: without this, memory grows for hours
    // towards the sum of their peaks.
    malloc_trim(0);
    ExpireSessions();
  }
}

void Gateway::ExpireSessions() {
  {
    MutexLock lock(house_mutex_);
    if (std::exchange(expiring_, true)) return;  // the store is slow
  }
  store_->Expire(
      options_.session_ttl, [this](const std::string& id) { return running_.Taken(id); },
      [this](const absl::StatusOr<Removed>& removed) {
        if (!removed.ok()) {
          LogWarning("sessions not expired", {{"error", std::string(removed.status().message())}});
        } else if (!removed->sessions.empty()) {
          journal_->BeginFile();
          drops_.Drop(removed->pictures, removed->sessions);
          LogInfo("sessions expired", {{"sessions", absl::StrCat(removed->sessions.size())}});
        }
        MutexLock lock(house_mutex_);
        expiring_ = false;
        more_expired_ = removed.ok() && removed->more;
        house_changed_.NotifyAll();
      });
}

void Gateway::Start(OnReadiness on_readiness) {
  {
    MutexLock lock(publish_mutex_);
    on_readiness_ = std::move(on_readiness);
  }
  vision_.Start([this] { Publish(); });
  llm_.Start([this] { Publish(); });
  rollouts_.Start();
  recovery_.Open();
}

void Gateway::Publish() {
  MutexLock lock(publish_mutex_);
  if (!on_readiness_) return;
  for (auto& [name, serving] : models_seen_) serving = false;
  if (const auto models = router_.LanguageModels(); models.ok()) {
    for (const v1::ModelInfo& model : *models) {
      const std::string& name = model.model().name();
      models_seen_[name] = router_.Find({.name = name}, /*pictures=*/true).ok();
    }
  }
  const absl::Status status = router_.Ready();
  on_readiness_({status.ok(), std::string(status.message()), models_seen_});
}

void Gateway::Stop() {
  admin_.Stop();
  counts_.Stop();
  gate_.Close();
  fetcher_.Stop();
  rollouts_.Stop();
  warmup_.Stop();
  running_.BreakAll(TurnBreak::kShutdown);
  parts_.admission.WaitUntilIdle(CondVar::Clock::now() + kStopTimeout);
  MutexLock lock(publish_mutex_);
  on_readiness_ = nullptr;
}

}  // namespace llava
