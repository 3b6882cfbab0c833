#include "server/llm/engine_worker.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <iterator>
#include <set>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/llm/busy.h"
#include "server/runtime/logging.h"
#include "server/runtime/seconds.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// A call to the device that lasts longer, and longer than so many times what was expected, may
// hang.
constexpr std::chrono::seconds kLate{1};
constexpr double kLateTimes = 4;

}  // namespace

EngineWorker::EngineWorker(LlmEngine& engine, ModelRunner& runner, int number, DeviceTurn& turn,
                           StepWatch& steps)
    : engine_(engine),
      runner_(runner),
      number_(number),
      turn_(turn),
      steps_(steps),
      metrics_(engine.metrics_),
      blocks_(runner.num_blocks()) {
  ShowBlocks();
}

EngineWorker::~EngineWorker() {
  SetBusy(false);
  metrics_.kv_used_bytes.Decrement(Bytes(shown_.used));
  metrics_.kv_idle_bytes.Decrement(Bytes(shown_.idle));
  metrics_.kv_total_bytes.Decrement(Bytes(shown_.total));
}

void EngineWorker::SetBusy(bool busy) {
  if (busy != busy_) turn_.Busy(busy);
  busy_ = busy;
}

double EngineWorker::Bytes(int64_t blocks) const {
  return static_cast<double>(blocks * engine_.info_.kv_block_bytes);
}

std::string EngineWorker::Run() {
  while (true) {
    LetIn();
    if (engine_.stopping_) {
      FailAll(LlmBusyError("the process is stopping"));
      return "";
    }
    DropGoneAndLate();
    if (running_.empty()) {
      if (engine_.retires(number_)) return "";
      if (const auto prompt = engine_.TakeWarm()) Prewarm(*prompt);
      continue;
    }
    SetBusy(true);
    const absl::Status stepped = Step();
    if (stepped.ok()) continue;
    try {  // was it these sequences, or the device?
      CheckDevice();
    } catch (const WorkerGivenUp&) {
      throw;
    } catch (...) {
      const absl::Status status = FromException(std::current_exception());
      FailAll(absl::UnavailableError("llm: the worker of this answer died"));
      return std::string(status.message());
    }
    FailStepped(absl::InternalError(stepped.message()));
  }
}

void EngineWorker::OnDevice(DeviceTurn::Held (DeviceTurn::*turn)(), double seconds,
                            const std::function<void()>& call) {
  // From before the turn: it does not come while another version hangs on the device.
  late_at_ = Clock::now() + std::max<Clock::duration>(
                                kLate, std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(kLateTimes * seconds)));
  struct Over {
    std::atomic<Clock::time_point>& late_at;
    ~Over() { late_at = kNever; }
  };
  const Over over{late_at_};
  const DeviceTurn::Held held = (turn_.*turn)();
  steps_.Run(call);
}

void EngineWorker::CheckDevice() {
  // The test writes to the first blocks: nobody's may be there.
  for (const auto& sequence : running_) {
    if (!sequence->paused) Pause(*sequence);
  }
  {
    MutexLock lock(mutex_);
    checking_ = true;  // for good if the device fails
  }
  SetBusy(false);  // they wait for the test: nothing need be left to them meanwhile
  WarmUp(runner_, engine_.info_, [this](const std::function<void()>& compute) {
    OnDevice(&DeviceTurn::InBackground, 0, compute);
  });
  MutexLock lock(mutex_);
  checking_ = false;
  blocks_ = KvBlocks(runner_.num_blocks());
  shown_.evicted = 0;
}

double EngineWorker::Score(const GenerateJob& job) const {
  MutexLock lock(mutex_);
  const double places = static_cast<double>(active_) / engine_.options_.max_running;
  const double memory =
      1 - static_cast<double>(blocks_.available()) / static_cast<double>(blocks_.total());
  return RouteScore(blocks_.FindPrefix(job.cache_salt, job.rows), std::max(places, memory));
}

bool EngineWorker::CanTake(const GenerateJob& job) const {
  if (Clock::now() >= late_at_.load()) return false;
  MutexLock lock(mutex_);
  if (checking_) return false;
  if (!paused_.empty() && job.place.priority <= *paused_.rbegin()) return false;
  return CanJoin(blocks_.Missing(job.cache_salt, job.rows), active_,
                 {engine_.options_.max_running, blocks_.available()});
}

void EngineWorker::LetIn() {
  if (AnyPaused()) {
    TakeJobs();  // those that are more important than all that are paused
    ResumePaused();
  }
  if (!AnyPaused()) TakeJobs();
}

void EngineWorker::TakeJobs() {
  while (true) {
    if (running_.empty()) SetBusy(false);
    std::optional<GenerateJob> job = engine_.TakeJob(*this, /*wait=*/running_.empty());
    if (!job) return;
    Join(*std::move(job));
  }
}

void EngineWorker::Join(GenerateJob job) {
  const std::shared_ptr<AnswerSink> sink = job.sink;
  std::vector<RowKey> rows = std::move(job.rows);  // of no use but in the table
  const auto received = job.received;
  const uint64_t id = engine_.next_sequence_++;
  try {
    running_.push_back(
        std::make_unique<Sequence>(id, std::move(job), *engine_.info_.tokenizer, Clock::now()));
  } catch (...) {
    const absl::Status status = FromException(std::current_exception());
    engine_.Left(received, "error");
    return sink->Failed(status);
  }
  Sequence& sequence = *running_.back();  // where Abandon finds it, should the device hang
  try {
    sequence.table.salt = sequence.job().cache_salt;
    sequence.table.rows = std::move(rows);
    Begin(sequence);
  } catch (const WorkerGivenUp&) {
    throw;
  } catch (...) {
    Fail(sequence, FromException(std::current_exception()), "error", /*keep_blocks=*/false);
    return running_.pop_back();
  }
  const GenerateJob& joined = sequence.job();
  const int64_t cached = std::min(sequence.table.cached, joined.prompt_tokens());
  sequence.SetCached(cached);
  metrics_.queue_seconds.Observe(sequence.queue_seconds());
  metrics_.text_tokens.Increment(static_cast<double>(joined.text_tokens));
  metrics_.image_tokens.Increment(static_cast<double>(joined.image_tokens));
  metrics_.cached_tokens.Increment(static_cast<double>(cached));
  if (!sequence.complete()) return;
  Finish(sequence, false);  // resumed behind its last token
  running_.pop_back();
}

void EngineWorker::Begin(Sequence& sequence) {
  runner_.Begin(sequence.id(), sequence.AllIds(), sequence.job().features);
  KvTable& table = sequence.table;
  std::optional<KvBlocks::Copy> copy;
  bool grown = false;
  {
    MutexLock lock(mutex_);
    copy = blocks_.Begin(table);
    sequence.prompt_rows = static_cast<int64_t>(table.rows.size());
    sequence.picture_starts =
        PictureStarts(sequence.job().ids, sequence.job().picture_tokens, table.computed);
    grown = blocks_.Grow(table, sequence.prompt_rows - table.computed);
    ++active_;
  }
  sequence.holds_blocks = true;
  if (copy) {
    OnDevice(&DeviceTurn::ForAnswers, 0, [&] { runner_.CopyBlock(copy->from, copy->to); });
    metrics_.kv_copied_bytes.Increment(Bytes(1));
  }
  // Who calls has asked CanJoin.
  if (!grown) throw std::logic_error("a sequence was let in without room for its prompt");
}

void EngineWorker::GiveBack(Sequence& sequence, bool keep) {
  runner_.End(sequence.id());
  if (!sequence.holds_blocks) return;
  sequence.holds_blocks = false;
  MutexLock lock(mutex_);
  blocks_.End(sequence.table, keep);
  --active_;
}

void EngineWorker::Pause(Sequence& sequence) {
  GiveBack(sequence, /*keep=*/true);
  SetPaused(sequence, true);
}

void EngineWorker::SetPaused(Sequence& sequence, bool paused) {
  if (sequence.paused == paused) return;
  sequence.paused = paused;
  const int32_t priority = sequence.job().place.priority;
  MutexLock lock(mutex_);
  if (paused) {
    paused_.insert(priority);
  } else {
    paused_.erase(paused_.find(priority));
  }
}

bool EngineWorker::AnyPaused() const {
  MutexLock lock(mutex_);
  return !paused_.empty();
}

void EngineWorker::ResumePaused() {
  std::vector<Sequence*> paused;
  for (const auto& sequence : running_) {
    if (sequence->paused) paused.push_back(sequence.get());
  }
  std::stable_sort(paused.begin(), paused.end(), [](const Sequence* a, const Sequence* b) {
    return a->job().place.priority > b->job().place.priority;
  });
  for (Sequence* sequence : paused) {
    {
      MutexLock lock(mutex_);
      const int64_t missing = blocks_.Missing(sequence->table.salt, sequence->table.rows);
      if (!CanJoin(missing, active_, {engine_.options_.max_running, blocks_.available()})) return;
    }
    SetPaused(*sequence, false);
    try {
      Begin(*sequence);
    } catch (const WorkerGivenUp&) {
      throw;
    } catch (...) {
      Fail(*sequence, FromException(std::current_exception()), "error", /*keep_blocks=*/false);
      std::erase_if(running_, [&](const auto& running) { return running.get() == sequence; });
    }
  }
}

void EngineWorker::DropGoneAndLate() {
  const auto now = Clock::now();
  std::erase_if(running_, [&](const std::unique_ptr<Sequence>& sequence) {
    if (sequence->job().sink->gone()) {
      FailGone(*sequence);
      return true;
    }
    if (sequence->job().deadline > now) return false;
    if (sequence->started()) {
      Finish(*sequence, true);
    } else {
      Fail(*sequence, absl::DeadlineExceededError("the deadline passed before the first token"),
           "deadline");
    }
    return true;
  });
}

StepPlan EngineWorker::Plan(const std::vector<Sequence*>& active) const {
  std::vector<SequenceView> views;
  StepWork decoding;
  for (const Sequence* sequence : active) {
    const KvTable& table = sequence->table;
    if (sequence->decodes()) {
      ++decoding.decode_rows;
      decoding.keys += KeysOf(table.computed, 1);
    }
    views.push_back(
        {.left = static_cast<int64_t>(table.rows.size()) - table.computed,
         .decodes = sequence->decodes(),
         .room = static_cast<int64_t>(table.blocks.size()) * KvBlocks::kTokens - table.computed,
         .priority = sequence->job().place.priority,
         .computed = table.computed,
         .picture_starts = sequence->picture_starts});
  }
  StepLimits limits = LimitPrompts(cost_, decoding, engine_.options_.prefill_chunk,
                                   engine_.options_.prefill_slowdown);
  MutexLock lock(mutex_);
  limits.available_blocks = blocks_.available();
  return PlanStep(views, limits, [&](size_t i) { return blocks_.Regained(active[i]->table); });
}

absl::Status EngineWorker::Step() {
  std::vector<Sequence*> active;
  for (const auto& sequence : running_) {
    if (!sequence->paused) active.push_back(sequence.get());
  }
  const StepPlan plan = Plan(active);
  for (size_t i = 0; i < active.size(); ++i) {
    if (!plan.preempted[i]) continue;
    Pause(*active[i]);
    metrics_.preemptions.Increment();
  }
  std::vector<ModelRunner::Part> parts;
  std::vector<Sequence*> stepped;
  StepWork work;
  {
    MutexLock lock(mutex_);
    for (size_t i = 0; i < active.size(); ++i) {
      if (plan.rows[i] == 0) continue;
      KvTable& table = active[i]->table;
      if (!blocks_.Grow(table, plan.rows[i])) continue;  // less came back than was planned with
      const bool decodes = active[i]->decodes();
      parts.push_back({.sequence = active[i]->id(),
                       .first = table.computed,
                       .rows = plan.rows[i],
                       .token = decodes ? active[i]->last_token() : 0,
                       .sampled = table.computed + plan.rows[i] >= active[i]->prompt_rows,
                       .blocks = table.blocks,
                       .choice = active[i]->Choice()});
      stepped.push_back(active[i]);
      (decodes ? work.decode_rows : work.prompt_rows) += plan.rows[i];
      work.keys += KeysOf(table.computed, plan.rows[i]);
      work.pictures += static_cast<int64_t>(
          StartsWithin(active[i]->picture_starts, table.computed, plan.rows[i]).size());
    }
  }
  if (parts.empty()) return absl::OkStatus();  // all wait for blocks; what was preempted gives them
  metrics_.batch_tokens.Observe(static_cast<double>(work.rows()));

  StepLogits logits;
  absl::Status status;
  Clock::time_point begin;
  try {
    OnDevice(&DeviceTurn::ForAnswers, cost_.Seconds(work), [&] {
      begin = Clock::now();  // what others computed meanwhile is no cost of ours
      logits = runner_.Step(parts);
    });
  } catch (const WorkerGivenUp&) {
    throw;
  } catch (...) {
    status = FromException(std::current_exception());
    engine_.LogWorker("step failed", number_,
                      absl::StrCat(status.message(), "; sequences: ", parts.size()));
  }
  if (status.ok()) {
    served_ = true;
    cost_.Observe(work, Seconds(Clock::now() - begin));
    MutexLock lock(mutex_);
    for (size_t i = 0; i < parts.size(); ++i) blocks_.Advance(stepped[i]->table, parts[i].rows);
  }
  std::set<const Sequence*> ended;
  int64_t row = 0;
  size_t sampled = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!status.ok()) {
      GiveBack(*stepped[i], /*keep=*/false);
      ended.insert(stepped[i]);
    } else if (parts[i].sampled) {
      const int32_t drawn = logits.Drawn(sampled++);
      const bool has_row = drawn == StepLogits::kNotDrawn;
      if (Deliver(*stepped[i], drawn, has_row ? logits.Row(row++) : std::span<const float>())) {
        ended.insert(stepped[i]);
      }
    }
  }
  const auto left =
      std::stable_partition(running_.begin(), running_.end(),
                            [&](const auto& sequence) { return !ended.contains(sequence.get()); });
  if (!status.ok()) std::move(left, running_.end(), std::back_inserter(failed_));
  running_.erase(left, running_.end());
  ShowBlocks();
  metrics_.step_seconds.Observe(Seconds(Clock::now() - begin));
  return status;
}

void EngineWorker::ShowBlocks() {
  Shown now;
  {
    MutexLock lock(mutex_);
    now = {blocks_.total() - blocks_.available(), blocks_.idle(), blocks_.total(),
           blocks_.evicted()};
  }
  metrics_.kv_used_bytes.Increment(Bytes(now.used - shown_.used));
  metrics_.kv_idle_bytes.Increment(Bytes(now.idle - shown_.idle));
  metrics_.kv_total_bytes.Increment(Bytes(now.total - shown_.total));
  metrics_.kv_evicted_blocks.Increment(static_cast<double>(now.evicted - shown_.evicted));
  shown_ = now;
}

}  // namespace llava
