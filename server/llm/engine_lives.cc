// How the workers of an engine begin, end, hang and begin anew.

#include <algorithm>
#include <exception>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/llm/engine.h"
#include "server/llm/engine_worker.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {

void LlmEngine::ShowWorkers() {
  const auto wanted = std::next(slots_.begin(), wanted_workers_);
  const auto failed =
      std::count_if(slots_.begin(), wanted, [](const Slot& slot) { return slot.failed; });
  metrics_.ShowWorkers(loading_, ready_, static_cast<int>(failed));
}

void LlmEngine::LogWorker(std::string_view message, int worker, const std::string& why) const {
  const std::vector<std::string> devices = absl::StrSplit(info_.device, ',');
  const auto device = static_cast<size_t>(places_.devices[static_cast<size_t>(worker)]);
  LogError(message, {{"model", info_.name},
                     {"version", absl::StrCat(info_.version)},
                     {"worker", absl::StrCat(worker)},
                     {"device", device < devices.size() ? devices[device] : info_.device},
                     {"reason", why}});
}

void LlmEngine::StartWorker(int worker) {
  Slot& slot = slots_[static_cast<size_t>(worker)];
  slot.ending = false;
  slot.watch->share = 0;
  slot.watch->stop = false;
  slot.tries = 0;
  slot.delay = options_.respawn_delay;
  slot.first = true;
  slot.failed = false;
  StartThread(worker, std::nullopt);
  slot.alive = true;
  ++loading_;
  ShowWorkers();
}

void LlmEngine::StartThread(int worker, std::optional<Life> before) {
  Slot& slot = slots_[static_cast<size_t>(worker)];
  slot.steps = std::make_shared<StepWatch>();
  try {
    slot.thread =
        options_.start_thread([this, worker, before = std::move(before), steps = slot.steps] {
          WorkerLoop(worker, before);
          steps->SetOver();
        });
  } catch (const std::system_error& error) {
    throw std::system_error(
        error.code(), absl::StrCat("the thread of worker ", worker + 1, " cannot be started"));
  }
}

LlmEngine::Life LlmEngine::Live(int worker) {
  Life life;
  const int device = places_.devices[static_cast<size_t>(worker)];
  DeviceTurn& turn = *places_.turns[static_cast<size_t>(device)];
  LoadWatch& watch = *slots_[static_cast<size_t>(worker)].watch;
  std::shared_ptr<StepWatch> steps;
  {
    MutexLock lock(mutex_);
    steps = slots_[static_cast<size_t>(worker)].steps;
  }
  const DevicePiece piece = [&](const std::function<void()>& compute) {
    if (watch.stop) throw std::runtime_error("the worker was stopped");
    const DeviceTurn::Held held = turn.InBackground();
    steps->Run(compute);
  };
  std::unique_ptr<ModelRunner> runner;
  double drift = -1;
  try {
    steps->Load([&] { return watch.share + (checked_ ? checked_->load() : 0.0); },
                [&] { runner = factory_(device, watch); });
    watch.share = 1;
    drift = runner->SelfTest(piece);
    WarmUp(*runner, info_, piece);
    const std::string measured = runner->Prepare(options_.max_running, info_.max_positions, piece);
    if (!measured.empty()) LogInfo("chose products", {{"measured", measured}});
  } catch (const WorkerGivenUp&) {
    life.given_up = true;
    return life;
  } catch (const LoadFailure& failure) {
    life.status = failure.status;
    return life;
  } catch (...) {
    life.status = FromException(std::current_exception());
    return life;
  }
  EngineWorker works(*this, *runner, worker, turn, *steps);
  {
    MutexLock lock(mutex_);
    weight_bytes_ = runner->weight_bytes();
    drift_ = std::max(drift_, drift);
    const int64_t tokens = runner->num_blocks() * KvBlocks::kTokens;
    if (kv_capacity_tokens_ == 0 || tokens < kv_capacity_tokens_) kv_capacity_tokens_ = tokens;
    workers_.push_back(&works);
    --loading_;
    ++ready_;
    ShowWorkers();
    changed_.NotifyAll();
  }
  life.loaded = true;
  while (true) {
    std::string reason;
    try {
      reason = works.Run();
    } catch (const WorkerGivenUp&) {
      life.given_up = true;
      return life;
    }
    life.served = works.served();
    if (!reason.empty()) life.status = absl::UnavailableError(reason);
    MutexLock lock(mutex_);
    if (reason.empty() && !Retires(worker)) continue;  // it is wanted after all
    slots_[static_cast<size_t>(worker)].ending = reason.empty();
    std::erase(workers_, &works);
    --ready_;
    ++loading_;  // unless it is given up
    ShowWorkers();
    changed_.NotifyAll();  // what was left to this one is for all
    return life;
  }
}

void LlmEngine::End(int worker) {
  slots_[static_cast<size_t>(worker)].alive = false;
  --loading_;
  ShowWorkers();
  changed_.NotifyAll();
}

void LlmEngine::WorkerLoop(int worker, std::optional<Life> before) {
  Slot& slot = slots_[static_cast<size_t>(worker)];
  while (true) {
    const Life life = before ? *std::exchange(before, std::nullopt) : Live(worker);
    if (life.given_up || EndsAfter(worker, life)) return;
    const std::string reason(life.status.message());
    bool again = true;
    std::chrono::milliseconds delay;
    {
      MutexLock lock(mutex_);
      slot.first = false;
      if (life.served) {
        slot.tries = 0;
        slot.delay = options_.respawn_delay;
      }
      again = slot.tries++ < options_.respawns;
      delay = slot.delay;
      slot.delay *= 2;
    }
    if (!again || absl::IsFailedPrecondition(life.status)) return GiveUp(worker, reason);
    LogWorker("worker died, it begins anew", worker,
              absl::StrCat(reason, "; in ", delay.count(), " ms"));
    metrics_.respawns.Increment();
    MutexLock lock(mutex_);
    const auto until = Clock::now() + delay;
    while (!Retires(worker) && Clock::now() < until) changed_.WaitUntil(mutex_, until);
    if (Retires(worker)) return End(worker);
  }
}

bool LlmEngine::EndsAfter(int worker, const Life& life) {
  MutexLock lock(mutex_);
  Slot& slot = slots_[static_cast<size_t>(worker)];
  const bool failed = slot.first && !life.loaded && !Retires(worker);
  if (!failed && !Retires(worker) && !slot.ending) return false;
  if (failed) {
    load_status_ = life.status;
    slot.failed = true;
  }
  End(worker);
  return true;
}

StepWatch::Limits LlmEngine::LimitsNow() const {
  StepWatch::Limits limits;
  if (Clock::now() >= patient_until_) {
    limits.step = limits.load = Clock::duration::zero();
  } else {
    if (options_.step_limit.count() > 0) limits.step = options_.step_limit;
    if (options_.load_limit.count() > 0) limits.load = options_.load_limit;
  }
  return limits;
}

std::string LlmEngine::WhyGivenUp(bool loads) const {
  if (stopping_) return "a call to the device does not end when the engine shall";
  if (loads) {
    return absl::StrCat("nothing of the weights was read for longer than ",
                        options_.load_limit.count(), " ms (a multiple of --step-limit)");
  }
  return absl::StrCat("a step took longer than ", options_.step_limit.count(),
                      " ms (--step-limit)");
}

void LlmEngine::WatchAll() {
  constexpr std::chrono::milliseconds kShortest{1}, kLongest{1000};
  Clock::duration interval = kLongest;
  for (const auto limit : {options_.step_limit, options_.load_limit}) {
    if (limit.count() > 0) interval = std::min<Clock::duration>(interval, limit / 4);
  }
  interval = std::max<Clock::duration>(interval, kShortest);
  while (true) {
    std::vector<std::shared_ptr<StepWatch>> watches;
    std::vector<GenerateJob> over;
    StepWatch::Limits limits;
    {
      MutexLock lock(mutex_);
      const auto begin = Clock::now();
      while (watching_) {
        auto due = begin + interval;
        if (begin < patient_until_) due = std::min(due, patient_until_);
        if (Clock::now() >= due) break;
        watch_changed_.WaitUntil(mutex_, due);
      }
      if (!watching_) return;
      // Workers do so themselves, but all of them may be dead or hang.
      over = RemoveOver();
      if (!over.empty()) metrics_.ShowWaiting(waiting_.size());
      for (const Slot& slot : slots_) watches.push_back(slot.steps);
      limits = LimitsNow();
    }
    FailOver(over);
    for (size_t i = 0; i < watches.size(); ++i) {
      watches[i]->GiveUpIfLonger(limits, [&](bool loads) { Replace(static_cast<int>(i), loads); });
    }
  }
}

void LlmEngine::Replace(int worker, bool loads) {
  const std::string reason = WhyGivenUp(loads);
  LogWorker("worker hangs and is given up", worker, reason);
  // The thread is within a call: what it works with stays as long as we do.
  EngineWorker* hung = nullptr;
  Life life;
  std::string no_thread;
  bool follows = false;
  {
    MutexLock lock(mutex_);
    const auto found = std::find_if(workers_.begin(), workers_.end(),
                                    [&](const auto* other) { return other->number() == worker; });
    if (found != workers_.end()) {
      hung = *found;
      workers_.erase(found);
      --ready_;
      ++loading_;  // unless it is given up
      ShowWorkers();
    }
    const bool stuck = std::any_of(hung_.begin(), hung_.end(), [&](const Hung& other) {
      return other.worker == worker && other.steps->calling();
    });
    life.loaded = hung != nullptr;
    // However often it hangs, if it works in between; but not one model after the other for ever.
    life.served = hung != nullptr && hung->served() && !stuck;
    std::erase_if(hung_, [](Hung& other) {
      if (other.steps->over()) other.thread.join();  // it has nothing left to do
      return other.steps->over();
    });
    Slot& slot = slots_[static_cast<size_t>(worker)];
    hung_.push_back({std::move(slot.thread), slot.steps, worker});
    const int device = places_.devices[static_cast<size_t>(worker)];
    if (!loads) places_.turns[static_cast<size_t>(device)]->TakeBack();
    life.status = absl::UnavailableError(reason);
    // Where a kernel of a GPU does not end, no call that frees memory of the process does.
    if (!on_cpu_ && !stopping_) (loads ? load_hung_ : given_up_) = reason;
    if (on_cpu_ && !loads && !Retires(worker)) {
      try {
        StartThread(worker, life);
        follows = true;
      } catch (const std::exception& error) {
        no_thread = absl::StrCat("; ", error.what());
      }
    }
    changed_.NotifyAll();
  }
  if (hung != nullptr) hung->Abandon();
  if (follows || EndsAfter(worker, life)) return;
  GiveUp(worker, reason + no_thread);
}

bool LlmEngine::hangs() const {
  MutexLock lock(mutex_);
  return std::any_of(hung_.begin(), hung_.end(),
                     [](const Hung& hung) { return hung.steps->calling(); });
}

void LlmEngine::GiveUp(int worker, const std::string& reason) {
  LogWorker("worker died and is given up", worker, reason);
  bool last = false;
  {
    MutexLock lock(mutex_);
    slots_[static_cast<size_t>(worker)].failed = true;
    given_up_ = reason;
    End(worker);
    last = ready_ == 0 && loading_ == 0;
    if (last) failure_ = "all workers failed: " + reason;
  }
  if (!last) return;
  FailWaiting(absl::UnavailableError("llm: all workers failed"));
}

}  // namespace llava
