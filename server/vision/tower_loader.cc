#include "server/vision/tower_loader.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/manifest.h"
#include "server/device/device.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

constexpr std::chrono::milliseconds kStopPoll{50};

int WorkersOf(const TowerOptions& options) {
  const auto devices = ParseDevices(options.device);
  return options.workers * (devices.ok() ? static_cast<int>(devices->size()) : 1);
}

TowerOptions At(TowerOptions options, const VersionRef& version) {
  options.model = version.folder.string();
  return options;
}

// What the manifest says, if there is a readable one: nothing is decided by it alone.
std::optional<Manifest> ManifestOf(const VersionRef& version) {
  std::error_code error;
  if (!std::filesystem::exists(version.folder / "manifest.json", error)) return std::nullopt;
  try {
    return Manifest::Read(version.folder);
  } catch (const std::exception&) {
    return std::nullopt;  // opening it will tell why
  }
}

}  // namespace

EngineReaper::EngineReaper() : thread_([this] { Loop(); }) {}

EngineReaper::~EngineReaper() {
  {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

std::shared_ptr<VisionEngine> EngineReaper::Own(std::unique_ptr<VisionEngine> engine) {
  return std::shared_ptr<VisionEngine>(engine.release(), [this](VisionEngine* gone) {
    MutexLock lock(mutex_);
    gone_.emplace_back(gone);
    changed_.NotifyAll();
  });
}

bool EngineReaper::Wait(const std::function<bool()>& stop) {
  MutexLock lock(mutex_);
  while (!gone_.empty() || freeing_) {
    if (stop()) return false;
    changed_.WaitUntil(mutex_, CondVar::Clock::now() + kStopPoll);
  }
  return true;
}

void EngineReaper::ForEach(const std::function<void(VisionEngine&)>& look) {
  std::vector<VisionEngine*> engines;
  {
    MutexLock lock(mutex_);
    ++looks_;
    for (const auto& engine : gone_) engines.push_back(engine.get());
  }
  for (VisionEngine* engine : engines) look(*engine);
  MutexLock lock(mutex_);
  --looks_;
  changed_.NotifyAll();
}

void EngineReaper::Loop() {
  while (true) {
    VisionEngine* next = nullptr;
    {
      MutexLock lock(mutex_);
      freeing_ = false;
      changed_.NotifyAll();
      while (gone_.empty() && !closed_) changed_.Wait(mutex_);
      if (gone_.empty()) return;
      next = gone_.front().get();
    }
    next->Finish();
    std::unique_ptr<VisionEngine> ended;
    {
      MutexLock lock(mutex_);
      while (looks_ > 0) changed_.Wait(mutex_);
      ended = std::move(gone_.front());
      gone_.pop_front();
      freeing_ = true;
    }
  }
}

VisionServableLoader::VisionServableLoader(TowerOptions options, VisionEngine::Options engine,
                                           FeatureCache& cache, Metrics& metrics)
    : options_(std::move(options)),
      engine_options_(std::move(engine)),
      workers_(WorkersOf(options_)),
      cache_(cache),
      metrics_(metrics),
      towers_(metrics) {}

std::shared_ptr<VisionEngine> VisionServableLoader::FindEngine(const Sha256Digest& digest) {
  std::erase_if(engines_, [](const auto& engine) { return engine.expired(); });
  for (const auto& weak : engines_) {
    auto engine = weak.lock();
    if (engine && engine->info().digest == digest && engine->failure().empty()) return engine;
  }
  return nullptr;
}

absl::StatusOr<uint64_t> VisionServableLoader::EstimateBytes(const VersionRef& version,
                                                             int workers) {
  return EstimateTowerBytes(At(options_, version), workers > 0 ? workers : workers_,
                            engine_options_.max_batch);
}

std::string VisionServableLoader::MemoryGroup(const VersionRef& version) {
  const auto manifest = ManifestOf(version);
  if (!manifest || manifest->kind != Manifest::Kind::kTower) return "";
  return "tower " + ToHex(manifest->tower_digest);
}

absl::StatusOr<std::shared_ptr<Servable>> VisionServableLoader::Load(const VersionRef& version,
                                                                     const LoadOptions& options) {
  if (!reaper_.Wait(options.stop)) {  // what is going shall have gone before more comes
    return absl::CancelledError("told to stop while an engine was being freed");
  }
  // Verified first, then read by each worker.
  constexpr double kVerifying = 0.5;
  const TowerReading reading{[&](double share) { options.progress(kVerifying * share); },
                             options.stop, options.bytes_per_second};
  const auto note_lost = [this](const absl::Status& status) {
    MutexLock lock(mutex_);
    if (worked_ && !on_cpu() && absl::IsFailedPrecondition(status)) {
      device_lost_ = std::string(status.message());
    }
  };
  absl::StatusOr<LoadedTower> tower = OpenTowerWorkers(At(options_, version), reading);
  if (!tower.ok()) {
    note_lost(tower.status());
    return tower.status();
  }
  if (options.stop()) return absl::CancelledError("told to stop while loading");
  options.progress(kVerifying);
  std::shared_ptr<VisionEngine> engine;
  bool found = true;
  {
    MutexLock lock(mutex_);
    engine = FindEngine(tower->info.digest);
    if (!engine) {
      found = false;
      engine = reaper_.Own(std::make_unique<VisionEngine>(engine_options_, *std::move(tower),
                                                          cache_, metrics_, options.workers));
      engines_.push_back(engine);  // before it has loaded: its workers may hang meanwhile
    }
  }
  if (found) {
    LogInfo("the tower is there already", {{"model", version.name},
                                           {"version", absl::StrCat(version.version)},
                                           {"digest", ToHex(engine->info().digest)}});
  } else {
    options.warming();
  }
  if (auto status = engine->WaitUntilReady(options.stop); !status.ok()) {
    note_lost(status);
    return status;
  }
  options.progress(1);
  {
    MutexLock lock(mutex_);
    worked_ = true;
  }
  v1::ModelInfo info = TowerModelInfo(engine->info(), version.name, version.version);
  return std::make_shared<VisionServable>(std::move(info), std::move(engine));
}

std::string VisionServableLoader::device_lost() {
  ForEach([this](VisionEngine& engine) {
    std::string reason = engine.FailHung();
    if (reason.empty() && !on_cpu()) reason = engine.given_up();
    MutexLock lock(mutex_);
    if (device_lost_.empty()) device_lost_ = std::move(reason);
  });
  MutexLock lock(mutex_);
  return device_lost_;
}

void VisionServableLoader::ForEach(const std::function<void(VisionEngine&)>& look) {
  std::vector<std::shared_ptr<VisionEngine>> engines;
  {
    MutexLock lock(mutex_);
    for (const auto& weak : engines_) {
      if (auto engine = weak.lock()) engines.push_back(std::move(engine));
    }
  }
  for (const auto& engine : engines) look(*engine);
  engines.clear();  // perhaps the last to hold one
  reaper_.ForEach(look);
}

void VisionServableLoader::Route(std::shared_ptr<Servable> servable) {
  towers_.Route(std::static_pointer_cast<VisionServable>(std::move(servable)));
}

bool VisionServableLoader::Stop() {
  bool ended = true;
  ForEach([&](VisionEngine& engine) { ended &= engine.Stop(); });
  return ended;
}

}  // namespace llava
