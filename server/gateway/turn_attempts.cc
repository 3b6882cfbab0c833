// From features to text, and on when a service behind dies.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/gateway/turn_runner.h"
#include "server/runtime/failpoint.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using std::chrono::system_clock;

constexpr milliseconds kShortestDelay{100}, kUsualDelay{250}, kLongestDelay{1000};
// A version that is refused so often although it is said to be served is not worth more.
constexpr int kMaxReroutes = 5;

milliseconds DelayOf(const absl::Status& status) {
  return std::clamp(RetryAfter(status).value_or(kUsualDelay), kShortestDelay, kLongestDelay);
}

// The language service, or the way to it, is gone.
bool IsUnreachable(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return false;
  google::rpc::ErrorInfo info;  // of Backend
  if (GetDetail(status, &info)) {
    const auto service = info.metadata().find("service");
    return info.reason() == "UNREACHABLE" && service != info.metadata().end() &&
           service->second == "llm";
  }
  return !RetryAfter(status);  // the transport speaks
}

// An answer that broke off so can be gone on with. A server that stops cancels its calls.
bool IsBrokenOff(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsCancelled(status);
}

bool IsWhole(const v1::GenerateFinished& finished) {
  return finished.reason() == v1::FINISH_REASON_STOP ||
         finished.reason() == v1::FINISH_REASON_LENGTH ||
         finished.reason() == v1::FINISH_REASON_CONTEXT;
}

}  // namespace

void TurnRunner::Attempt() {
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (!proven_ && !trying_) return Try(&TurnRunner::Attempt);
  started_.Clear();
  finished_.reset();
  worker_began_ = false;
  arrived_ = false;
  asked_ = false;
  auto llm = parts_.router.PickLlm(
      route_, Key(),
      {.constraint = HasConstraint(turn_.sampling), .except = avoid_ ? llm_.get() : nullptr});
  if (!llm.ok()) {  // no process lists the version any more
    if (begun() ? TryAgain(llm.status()) : Reroute()) return;
    return Conclude(EndingOf(llm.status()));
  }
  llm_ = *std::move(llm);
  auto delivery = FeatureDelivery::Create(
      parts_, prompt_, route_, llm_,
      {request_.caller, request_.request_id, request_.priority, deadlines_.turn, avoid_vision_},
      [self = shared_from_this()](absl::StatusOr<FeatureDelivery::Outcome> outcome,
                                  std::shared_ptr<Backend> failed) {
        self->avoid_vision_ = std::move(failed);
        self->OnFeatures(std::move(outcome));
      });
  SetStop([delivery] { delivery->Cancel(); });
  delivery->Start();
}

void TurnRunner::OnFeatures(absl::StatusOr<FeatureDelivery::Outcome> outcome) {
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (!outcome.ok()) {
    if (TryAgain(outcome.status())) return;
    return Conclude(EndingOf(outcome.status()));
  }
  vision_seconds_ += outcome->vision_seconds;
  if (has_session()) DropPictures();
  Generate(*outcome);
}

void TurnRunner::DropPictures() {
  prompt_.files.clear();
  for (StoredImage& image : turn_.images) image.bytes.reset();
  request_.memory.reset();
}

void TurnRunner::Generate(const FeatureDelivery::Outcome& outcome) {
  if (const auto status = LLAVA_FAILPOINT("backend.generate"); !status.ok()) {
    return OnGenerated(absl::UnavailableError(status.message()));
  }
  asked_ = true;
  v1::GenerateRequest request;
  *request.mutable_model() = turn_.model;
  FillMessages(prompt_, outcome.keys, request.mutable_messages());
  *request.mutable_sampling() = turn_.sampling;
  request.set_priority(request_.priority);
  request.set_tenant(request_.caller.name());
  request.set_weight(request_.caller.weight());
  request.set_cache_salt(request_.caller.name());
  request.set_request_id(request_.request_id);
  request.set_session_id(request_.session_id);
  if (answer_.tokens.ids_size() > 0 || text_bytes_ > 0) {
    *request.mutable_continue_from()->mutable_tokens() = answer_.tokens;
    request.mutable_continue_from()->set_text_bytes_emitted(text_bytes_);
  }
  auto self = shared_from_this();
  auto call = GenerateCall::Create(
      *llm_, std::move(request), deadlines_.turn,
      {.on_arrived = [self] { self->arrived_ = true; },
       .on_event = [self](v1::GenerateResponse& event) -> absl::Status {
         if (self->OnEvent(event)) return absl::OkStatus();
         if (self->protocol_error_.ok()) return absl::CancelledError("broken off");
         return self->protocol_error_;
       },
       .on_done = [self](absl::Status status) { self->OnGenerated(std::move(status)); }});
  SetStop([call] { call->Cancel(); });
  call->Start();
}

bool TurnRunner::OnEvent(v1::GenerateResponse& event) {
  if (!protocol_error_.ok() || !LLAVA_FAILPOINT("backend.event").ok()) return false;
  switch (event.event_case()) {
    case v1::GenerateResponse::kStarted:
      return OnStarted(event.started());
    case v1::GenerateResponse::kDelta:
      return OnDelta(*event.mutable_delta());
    case v1::GenerateResponse::kFinished:
      finished_ = std::move(*event.mutable_finished());
      return true;
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;
  }
  return true;  // an event of a newer service
}

bool TurnRunner::OnStarted(const v1::GenerateStarted& started) {
  started_ = started;
  if (started.model().name() != turn_.model.name() ||
      started.model().version() != turn_.model.version()) {
    protocol_error_ = absl::InternalError(
        absl::StrCat("version ", started.model().version(), " of \"", started.model().name(),
                     "\" answered, asked was version ", turn_.model.version()));
    return false;
  }
  // The service was started anew with other contents under that number.
  if (IdOf(started.model()) != IdOf(turn_.model)) {
    protocol_error_ = absl::FailedPreconditionError(
        absl::StrCat("version ", turn_.model.version(), " has other contents there"));
    return false;
  }
  worker_began_ = true;
  refilled_ = looked_again_ = false;
  patience_.reset();
  const bool journalled = answer_.id != 0 && IdOf(answer_.model) == IdOf(turn_.model) &&
                          !answer_.tokens.tokenizer_digest().empty();
  answer_.tokens.set_tokenizer_digest(started.tokenizer_digest());
  if (has_session() && !journalled) JournalAnswer();
  return true;
}

void TurnRunner::JournalAnswer() {
  const uint64_t before = answer_.id;  // of a turn whose worker died before it said a word
  answer_.session_id = request_.session_id;
  answer_.turn_id = turn_id_;
  answer_.asked = request_.asked;
  answer_.seed = turn_.seed;
  answer_.model = turn_.model;
  answer_.id =
      parts_.journal.Begin(answer_, [self = shared_from_this()](const absl::Status& status) {
        if (!status.ok()) self->OnJournalFault(status);
      });
  if (before != 0) parts_.journal.End(before);
}

bool TurnRunner::OnDelta(v1::GenerateDelta& delta) {
  if (!worker_began_) {
    protocol_error_ = absl::InternalError("text came before the event that begins an answer");
    return false;
  }
  if (delta.text_offset() != text_bytes_) {
    protocol_error_ = absl::InternalError(absl::StrCat(
        "text at byte ", delta.text_offset(), " came, byte ", text_bytes_, " was expected"));
    return false;
  }
  if (!delta.text().empty()) {
    const auto now = steady_clock::now();
    if (!first_text_) {
      first_text_ = now;
      if (!recovered_) {
        parts_.metrics.time_to_first_token_seconds.Observe(Seconds(request_.received, now));
      }
    } else {
      const double gap = Seconds(*last_text_, now);
      parts_.metrics.time_between_tokens_seconds.Observe(gap);
      largest_gap_ = std::max(largest_gap_, gap);
    }
    last_text_ = now;
    ++pieces_;
  }
  v1::TextDelta text;
  text.set_offset(text_bytes_);
  const int token_offset = answer_.tokens.ids_size();
  answer_.tokens.mutable_ids()->MergeFrom(delta.token_ids());
  text_bytes_ += delta.text().size();
  text.mutable_text()->swap(*delta.mutable_text());
  text.mutable_logprobs()->Swap(delta.mutable_logprobs());
  // Text may be held back: then there is nothing for readers yet.
  const bool tell = !text.text().empty() || !text.logprobs().empty();
  if (!has_session()) {
    if (tell) live_->Add(std::move(text));
    return true;
  }
  // With a new word in the journal the try has come to something: the next one begins further on.
  const bool proof = !text.text().empty() && !std::exchange(proven_, true);
  if (proof) trying_ = false;
  const auto message = std::make_shared<v1::TextDelta>(std::move(text));
  parts_.journal.Append(
      answer_.id,
      {.offset = message->offset(),
       .token_offset = token_offset,
       .text = message->text(),
       .token_ids = delta.token_ids()},
      [self = shared_from_this(), message, tell, proof](const absl::Status& status) {
        if (!status.ok()) {
          self->OnJournalFault(status);
        } else if (tell && !self->journal_failed()) {
          self->live_->Add(std::move(*message));
        }
        if (proof) self->LeaveLane(0);
      });
  return true;
}

void TurnRunner::OnJournalFault(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    if (!journal_fault_.ok()) return;
    journal_fault_ = status;
  }
  Break(TurnBreak::kJournalFault);
}

void TurnRunner::OnGenerated(absl::Status status) {
  if (IsVersionGone(protocol_error_)) {
    status = std::exchange(protocol_error_, absl::OkStatus());
  } else if (!protocol_error_.ok()) {
    return Conclude(EndingOf(llm_->Explain(protocol_error_)));
  }
  // With its last event an answer is whole, whatever becomes of the call.
  if (finished_ && IsWhole(*finished_)) return Conclude(FinishedEnding(finished_->reason()));
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (finished_ && finished_->reason() == v1::FINISH_REASON_DEADLINE) {
    status = absl::DeadlineExceededError("");
  } else if (finished_ && status.ok()) {  // nobody asked for that here
    status = OverloadedError(
        absl::StrCat("the answer was broken off there: ", FinishReasonLabel(finished_->reason())),
        kLongestDelay);
  } else if (status.ok()) {
    status = absl::InternalError("the answer ended without a final event");
  }
  if (absl::IsDeadlineExceeded(status)) return Conclude(EndingOf(status));
  if (TryAgain(status)) return;
  if (answer_.deaths >= kMaxDeaths) return Conclude(QuarantinedEnding());
  if (v1::MissingFeatures missing; GetDetail(status, &missing)) {
    status = OverloadedError("it did not keep the features of the pictures that it was just given",
                             kLongestDelay);
  } else if (begun() && IsVersionGone(status)) {
    return Conclude(InterruptedEnding(turn_.model));
  }
  Conclude(EndingOf(llm_->Explain(status)));
}

bool TurnRunner::TryAgain(const absl::Status& status) {
  avoid_ = absl::IsUnavailable(status) || absl::IsCancelled(status);
  v1::MissingFeatures missing;
  if (GetDetail(status, &missing)) {
    for (const v1::FeatureKey& key : missing.keys()) llm_->features().Remove(key);
    if (std::exchange(refilled_, true)) return false;
    Attempt();
    return true;
  }
  refilled_ = false;  // who is asked next may be another process, or one that has begun anew
  if (begun() ? IsBrokenOff(status) : IsUnreachable(status)) return GoOn(status);
  if (begun()) {
    if (!IsVersionGone(status)) return false;
    if (std::exchange(looked_again_, true)) return WaitForWorker(&TurnRunner::Continue);
    SetStop(nullptr);
    parts_.router.Refresh([self = shared_from_this()] { self->Continue(); });
    return true;
  }
  if (IsVersionGone(status)) {
    avoid_ = true;
    return Reroute();
  }
  if (absl::IsUnavailable(status)) {  // it has too much to do
    if (std::exchange(retried_, true)) return false;
    Later(DelayOf(status), &TurnRunner::Attempt);
    return true;
  }
  return false;
}

void TurnRunner::Later(milliseconds delay, void (TurnRunner::*step)()) {
  Later(delay, [self = shared_from_this(), step] { (self.get()->*step)(); });
}

void TurnRunner::Later(milliseconds delay, std::function<void()> step) {
  SetStop(nullptr);  // the step sees a break; the wait is short
  // The alarm keeps its callback after it has rung, so that the turn must leave it by then; and the
  // step may set the alarm again, which replaces this function.
  alarm_.Set(system_clock::now() + delay,
             [step = std::move(step)](bool) mutable { std::exchange(step, nullptr)(); });
}

bool TurnRunner::Reroute() {
  if (reroutes_++ >= kMaxReroutes) return false;
  FindAnother();
  return true;
}

void TurnRunner::FindAnother() {
  SetStop(nullptr);
  parts_.router.Refresh([self = shared_from_this()] {
    self->OnAnother(
        self->parts_.router.Find(self->choice_, !self->prompt_.DistinctImages().empty()));
  });
}

void TurnRunner::OnAnother(absl::StatusOr<Route> route) {
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (system_clock::now() >= deadlines_.turn) {
    return Conclude(EndingOf(absl::DeadlineExceededError("")));
  }
  if (!route.ok()) {
    // Between two versions that do not fit beside each other there may be none for a while.
    const bool may_come = absl::IsUnavailable(route.status()) ||
                          (absl::IsNotFound(route.status()) && !choice_.is_fixed());
    if (may_come && WaitForWorker(&TurnRunner::FindAnother)) return;
    return Conclude(EndingOf(route.status()));
  }
  const bool same = IdOf(route->model.model()) == IdOf(turn_.model);
  if (auto status = Take(*std::move(route)); !status.ok()) return Conclude(EndingOf(status));
  if (same) return Later(kShortestDelay, &TurnRunner::Attempt);  // of another process, or yet again
  if (!has_session()) {
    TellStarted();
    return Attempt();
  }
  RecordAnother();
}

void TurnRunner::RecordAnother() {
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (system_clock::now() >= deadlines_.turn) {
    return Conclude(EndingOf(absl::DeadlineExceededError("")));
  }
  parts_.store.RestartTurn(turn_, [self = shared_from_this()](const auto& number) {
    if (absl::IsNotFound(number.status())) {  // with its session
      return self->Conclude(self->EndingOf(number.status()));
    }
    // What is acknowledged does not end with a store that cannot take it.
    if (!number.ok()) return self->Later(kUsualDelay, &TurnRunner::RecordAnother);
    self->TellStarted();
    self->Attempt();
  });
}

bool TurnRunner::GoOn(const absl::Status& status) {
  // A worker that leaves in order, or a service out of reach, says when to come back.
  if (arrived_.exchange(false) && !RetryAfter(status)) {
    ++answer_.deaths;
    parts_.metrics.worker_deaths_total.Increment();
    if (has_session() && answer_.id == 0) {
      JournalAnswer();
    } else if (has_session()) {
      parts_.journal.NoteDeath(answer_.id);
    }
    LogWarning("language worker lost during an answer", {{"request_id", request_.request_id},
                                                         {"session_id", request_.session_id},
                                                         {"turn_id", turn_id_},
                                                         {"bytes", absl::StrCat(text_bytes_)},
                                                         {"deaths", absl::StrCat(answer_.deaths)},
                                                         {"error", std::string(status.message())}});
    if (answer_.deaths >= kMaxDeaths) return false;
  }
  return WaitForWorker(&TurnRunner::Continue);
}

bool TurnRunner::WaitForWorker(void (TurnRunner::*step)()) {
  const auto now = steady_clock::now();
  if (!patience_) patience_ = now + parts_.options.continue_timeout;
  if (now >= *patience_) return false;
  EndTry();  // who waits cannot be blamed
  // The next process waits as well as this one, which wants to end.
  if (has_session() && parts_.admission.draining()) Break(TurnBreak::kShutdown);
  Later(kUsualDelay, step);
  return true;
}

ModelChoice TurnRunner::VersionOfTurn() const {
  return {.name = turn_.model.name(), .version = turn_.model.version()};
}

void TurnRunner::Continue() {
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (system_clock::now() >= deadlines_.turn) {
    return Conclude(EndingOf(absl::DeadlineExceededError("")));
  }
  parts_.router.Resolve(VersionOfTurn(), !prompt_.DistinctImages().empty(),
                        [self = shared_from_this()](absl::StatusOr<Route> route) {
                          self->OnVersionBack(std::move(route));
                        });
}

void TurnRunner::OnVersionBack(absl::StatusOr<Route> route) {
  const bool replaceable = !begun() && request_.model.version == 0;
  bool missing = absl::IsNotFound(route.status());
  // Or its service serves others and is about to load it.
  if (absl::IsUnavailable(route.status())) {
    const bool pictures = !prompt_.DistinctImages().empty();
    const bool others = replaceable && parts_.router.Find(request_.model, pictures).ok();
    if (!others && WaitForWorker(&TurnRunner::Continue)) return;
    // If it is there, the vision service is what is missing.
    const bool there = parts_.router.Find(VersionOfTurn(), /*pictures=*/false).ok();
    missing = others || (!there && !IsUnreachable(route.status()));
  }
  // The same number with other contents is another version.
  if (missing || (route.ok() && route->model.model().digest() != turn_.model.digest())) {
    if (replaceable && Reroute()) return;
    return Conclude(begun() || route.ok() ? InterruptedEnding(turn_.model)
                                          : EndingOf(route.status()));
  }
  if (!route.ok()) return Conclude(EndingOf(route.status()));
  route_ = *std::move(route);
  Attempt();
}

}  // namespace llava
