#include "server/gateway/turn_gate.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/call_fault.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using std::chrono::system_clock;

// More names than this share one label, so that the metrics stay small.
constexpr size_t kMaxLabels = 1000;
constexpr milliseconds kShortestRetry{200}, kLongestRetry{60'000};
constexpr system_clock::duration kLongestWait = std::chrono::hours(24 * 365);
constexpr milliseconds kPlaceRetry{1000};  // when an answer of the key's own must end first

}  // namespace

void TurnGateOptions::Declare(Settings& settings) {
  settings.Add("max-running-turns", &max_running, "Answers under way at a time", 1, 1'000'000);
  settings.Add("max-waiting-turns", &max_waiting, "Questions that wait for a place", 0, 1'000'000);
  settings.Add("turn-queue-timeout", &max_wait, "Longest time a question waits for a place");
}

void TurnPermit::Release(uint64_t used) {
  if (released_.exchange(true)) return;
  gate_.Release(*this, used);
}

TurnGate::TurnGate(const TurnGateOptions& options, Metrics& metrics)
    : options_(options),
      metrics_(metrics),
      waiting_gauge_(metrics.Gauge("llava_gateway_turns_waiting",
                                   "Questions that wait for a place among the running turns.")),
      wait_seconds_(metrics.Histogram("llava_gateway_turn_wait_seconds",
                                      "How long questions waited for a place.")),
      overloads_(metrics.Counter("llava_gateway_overloads_total",
                                 "Questions refused because too many waited, or too long.")),
      thread_([this] { WatchDeadlines(); }) {}

TurnGate::~TurnGate() {
  Close();
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

TurnGate::Key& TurnGate::KeyOf(const Caller& caller, TimePoint now) {
  const auto found = keys_.find(caller.name());
  if (found != keys_.end()) {
    Key& key = found->second;
    key.limits = caller.limits();
    key.requests.SetRate(key.limits.requests_per_minute, now);
    key.tokens.SetRate(key.limits.tokens_per_minute, now);
    return key;
  }
  const MetricLabels label = {{"key", keys_.size() < kMaxLabels ? caller.name() : "(other)"}};
  return keys_
      .try_emplace(
          caller.name(), caller, now,
          metrics_.Counter("llava_gateway_key_turns_total",
                           "Questions let in, by name of the API key.", label),
          metrics_.Counter("llava_gateway_key_tokens_total",
                           "Tokens of prompts and answers, by name of the API key.", label),
          metrics_.Counter("llava_gateway_key_refusals_total",
                           "Questions refused by a limit of the key's own.", label))
      .first->second;
}

absl::Status TurnGate::Refuse(const Caller& caller, Key& key, const std::string& what,
                              milliseconds retry) {
  key.refusals_total.Increment();
  return LimitError(absl::StrCat("the API key \"", caller.name(), "\" ", what), retry);
}

absl::Status TurnGate::CheckRequests(const Caller& caller, Key& key, TimePoint now) {
  const auto wait = key.requests.Wait(1, now);
  if (wait.count() <= 0) return absl::OkStatus();
  return Refuse(
      caller, key,
      absl::StrCat("may ask ", key.limits.requests_per_minute,
                   " questions a minute; uploads, counts of tokens and constraints of sessions "
                   "count as such"),
      wait);
}

absl::Status TurnGate::CheckLimits(const Question& question, Key& key, TimePoint now) {
  const Caller& caller = question.caller;
  const double tokens = question.tokens;
  const KeyLimits& limits = key.limits;
  if (limits.concurrent_turns > 0 && key.turns >= limits.concurrent_turns) {
    return Refuse(caller, key,
                  absl::StrCat("has ", key.turns, " answers under way, allowed at a time are ",
                               limits.concurrent_turns),
                  kPlaceRetry);
  }
  if (!question.charged) {
    if (auto status = CheckRequests(caller, key, now); !status.ok()) return status;
  }
  if (const auto wait = key.tokens.Wait(tokens, now); wait.count() > 0) {
    return Refuse(
        caller, key,
        absl::StrCat("may use ", limits.tokens_per_minute,
                     " tokens a minute; this question reserves ", static_cast<int64_t>(tokens)),
        wait);
  }
  return absl::OkStatus();
}

absl::Status TurnGate::ChargeRequest(const Caller& caller) {
  MutexLock lock(mutex_);
  const auto now = steady_clock::now();
  Key& key = KeyOf(caller, now);
  if (auto status = CheckRequests(caller, key, now); !status.ok()) return status;
  key.requests.Take(1);
  return absl::OkStatus();
}

// About how long until those who wait have gone through.
milliseconds TurnGate::RetryDelay() const {
  const double seconds =
      turn_seconds_ * static_cast<double>(queue_.size() + 1) / options_.max_running;
  return std::clamp(milliseconds(static_cast<int64_t>(seconds * 1000)), kShortestRetry,
                    kLongestRetry);
}

absl::Status TurnGate::CheckRoom(const Question& question, Key& key, TimePoint now) {
  if (closed_) return ShuttingDown();
  if (question.again) return absl::OkStatus();
  if (auto status = CheckLimits(question, key, now); !status.ok()) return status;
  if (MustWait() && queue_.size() >= static_cast<size_t>(options_.max_waiting)) {
    overloads_.Increment();
    return OverloadedError(
        absl::StrCat("the gateway is full: ", running_, " answers are under way and ",
                     queue_.size(), " questions wait; try again later"),
        RetryDelay());
  }
  return absl::OkStatus();
}

uint64_t TurnGate::Enter(Question question, Done done) {
  const auto now = steady_clock::now();
  absl::Status refusal;
  uint64_t ticket = 0;
  {
    MutexLock lock(mutex_);
    Key& key = KeyOf(question.caller, now);
    refusal = CheckRoom(question, key, now);
    if (refusal.ok()) {
      const bool must_wait = MustWait();
      ++key.turns;
      if (!question.charged) key.requests.Take(1);
      key.tokens.Take(question.tokens);
      ticket = next_ticket_++;
      const auto left = std::clamp(question.deadline - system_clock::now(),
                                   system_clock::duration(0), kLongestWait);
      const bool callers = question.again || left < options_.max_wait;
      const TimePoint deadline =
          now + (callers ? std::chrono::duration_cast<milliseconds>(left) : options_.max_wait);
      const QueuePlace place{.tenant = question.caller.name(),
                             .weight = question.caller.weight(),
                             .priority = question.priority,
                             .cost = std::max(question.tokens, 1.0)};
      queue_.Push(place, {ticket, std::move(question), now, deadline, callers, std::move(done)});
      waiting_gauge_.Set(static_cast<double>(queue_.size()));
      if (must_wait) changed_.NotifyAll();
    }
  }
  if (!refusal.ok()) {
    done(refusal);
  } else {
    Dispatch();
  }
  return ticket;
}

void TurnGate::Dispatch() {
  mutex_.lock();
  // Callbacks may end in here again; whoever is at it already goes on for them.
  if (dispatching_) {
    mutex_.unlock();
    return;
  }
  dispatching_ = true;
  while (running_ < options_.max_running && !queue_.empty()) {
    Waiting next = *queue_.PopFront();
    ++running_;
    waiting_gauge_.Set(static_cast<double>(queue_.size()));
    const auto now = steady_clock::now();
    if (!next.question.again) Known(next.question.caller).turns_total.Increment();
    mutex_.unlock();
    wait_seconds_.Observe(std::chrono::duration<double>(now - next.since).count());
    next.done(std::shared_ptr<TurnPermit>(
        new TurnPermit(*this, next.question.caller, next.question.tokens)));
    mutex_.lock();
  }
  dispatching_ = false;
  mutex_.unlock();
}

void TurnGate::Release(const TurnPermit& permit, uint64_t used) {
  {
    MutexLock lock(mutex_);
    const auto now = steady_clock::now();
    Key& key = Known(permit.caller_);
    --running_;
    --key.turns;
    key.tokens.Take(static_cast<double>(used) - permit.reserved_);
    key.tokens_total.Increment(static_cast<double>(used));
    const std::chrono::duration<double> took = now - permit.since_;
    turn_seconds_ += 0.1 * (took.count() - turn_seconds_);
  }
  Dispatch();
}

// Gives back what was taken when it came.
void TurnGate::Forget(const Waiting& waiting) {
  Key& key = Known(waiting.question.caller);
  --key.turns;
  if (!waiting.question.charged) key.requests.Take(-1);
  key.tokens.Take(-waiting.question.tokens);
  waiting_gauge_.Set(static_cast<double>(queue_.size()));
}

void TurnGate::Cancel(uint64_t ticket) {
  std::vector<Waiting> gone;
  {
    MutexLock lock(mutex_);
    gone = queue_.RemoveIf([ticket](const Waiting& each) { return each.ticket == ticket; });
    for (const Waiting& each : gone) Forget(each);
  }
  for (Waiting& each : gone) each.done(absl::CancelledError("the client went away"));
}

void TurnGate::Close() {
  std::vector<Waiting> gone;
  {
    MutexLock lock(mutex_);
    closed_ = true;
    gone = queue_.RemoveIf([](const Waiting&) { return true; });
    for (const Waiting& each : gone) Forget(each);
  }
  for (Waiting& each : gone) each.done(ShuttingDown());
}

void TurnGate::WatchDeadlines() {
  mutex_.lock();
  while (!stopping_) {
    const auto now = steady_clock::now();
    std::optional<TimePoint> next;
    std::vector<Waiting> late = queue_.RemoveIf([&](const Waiting& each) {
      if (each.deadline <= now) return true;
      if (!next || each.deadline < *next) next = each.deadline;
      return false;
    });
    if (!late.empty()) {
      for (const Waiting& each : late) Forget(each);
      const milliseconds retry = RetryDelay();
      mutex_.unlock();
      for (Waiting& each : late) {
        if (each.deadline_is_callers) {
          each.done(CallersFault(absl::DeadlineExceededError(
              "the deadline passed while the question waited for a place")));
        } else {
          overloads_.Increment();
          each.done(OverloadedError("the question waited too long for a place; try again", retry));
        }
      }
      mutex_.lock();
    } else if (next) {
      changed_.WaitUntil(mutex_, *next);
    } else {
      changed_.Wait(mutex_);
    }
  }
  mutex_.unlock();
}

}  // namespace llava
