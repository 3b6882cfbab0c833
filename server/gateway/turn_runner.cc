#include "server/gateway/turn_runner.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/runtime/logging.h"
#include "server/runtime/service_process.h"
#include "server/runtime/status.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using std::chrono::system_clock;

// A deadline that is so near has passed: the client's clock and ours race for it.
constexpr milliseconds kDeadlineSlack{25};
constexpr milliseconds kShortestDelay{100}, kUsualDelay{250}, kLongestDelay{1000};

double Seconds(steady_clock::time_point from, steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

uint64_t DrawSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

milliseconds DelayOf(const absl::Status& status) {
  google::rpc::RetryInfo retry;
  if (!GetDetail(status, &retry)) return kUsualDelay;
  const milliseconds asked(retry.retry_delay().seconds() * 1000 +
                           retry.retry_delay().nanos() / 1'000'000);
  return std::clamp(asked, kShortestDelay, kLongestDelay);
}

}  // namespace

std::shared_ptr<TurnRunner> TurnRunner::Create(const TurnParts& parts, TurnRequest request,
                                               std::unique_ptr<TurnSink> sink,
                                               std::function<void(const absl::Status&)> on_end) {
  return std::shared_ptr<TurnRunner>(
      new TurnRunner(parts, std::move(request), std::move(sink), std::move(on_end)));
}

TurnRunner::TurnRunner(const TurnParts& parts, TurnRequest request, std::unique_ptr<TurnSink> sink,
                       std::function<void(const absl::Status&)> on_end)
    : parts_(parts),
      request_(std::move(request)),
      sink_(std::move(sink)),
      on_end_(std::move(on_end)),
      turn_id_(request_.regenerate_turn_id.empty() ? RandomId() : request_.regenerate_turn_id),
      deadline_(std::min(request_.deadline, system_clock::now() + parts_.options.request_timeout)) {
}

std::string TurnRunner::Key() const {
  return request_.session_id.empty() ? absl::StrCat("call ", turn_id_) : request_.session_id;
}

void TurnRunner::Start() {
  auto status = parts_.running.Add(Key(), turn_id_, [weak = weak_from_this()](TurnBreak why) {
    if (auto self = weak.lock()) self->Break(why);
  });
  if (!status.ok()) return End(status);
  if (request_.session_id.empty()) {
    prompt_ = request_.prompt;
    turn_.model = request_.model;
    turn_.sampling = request_.sampling;
    return FindVersion();
  }
  parts_.store.GetConversation(request_.session_id,
                               [self = shared_from_this()](absl::StatusOr<Conversation> found) {
                                 self->OnConversation(std::move(found));
                               });
}

void TurnRunner::Break(TurnBreak why) {
  std::function<void()> stop;
  {
    MutexLock lock(mutex_);
    if (break_) return;
    break_ = why;
    stop = stop_;
  }
  if (stop) stop();
}

void TurnRunner::SetStop(std::function<void()> stop) {
  {
    MutexLock lock(mutex_);
    stop_ = stop;
    if (!break_ || !stop_) return;
  }
  stop();
}

std::optional<TurnBreak> TurnRunner::broken() {
  MutexLock lock(mutex_);
  return break_;
}

void TurnRunner::OnConversation(absl::StatusOr<Conversation> found) {
  if (!found.ok()) return Refuse(found.status());
  const bool anew = !request_.regenerate_turn_id.empty();
  if (anew) {
    if (found->turns.empty() || found->turns.back().turn.id() != turn_id_) {
      return Refuse(absl::InvalidArgumentError(absl::StrCat(
          "turn_id \"", turn_id_, "\" is not the last turn of this session; only that one can be ",
          "answered anew")));
    }
    const v1::Turn& last = found->turns.back().turn;
    std::vector<StoredImage> images;
    for (const v1::ImageInfo& info : last.images()) images.push_back({info, nullptr});
    prompt_ = PromptOfConversation(*found, /*skip=*/1);
    prompt_.AddUser(last.user_text(), images);
  } else {
    prompt_ = PromptOfConversation(*found);
    prompt_.AddUser(request_.text, request_.images);
  }
  turn_.id = turn_id_;
  turn_.session_id = request_.session_id;
  turn_.user_text = request_.text;
  turn_.images = request_.images;
  turn_.model = request_.model;
  if (turn_.model.name().empty()) turn_.model.set_name(found->session.model());
  turn_.sampling = WithDefaults(request_.sampling, found->session.sampling());
  FindVersion();
}

void TurnRunner::FindVersion() {
  parts_.router.Resolve(turn_.model.name(), turn_.model.version(),
                        !prompt_.DistinctImages().empty(),
                        [self = shared_from_this()](absl::StatusOr<Route> route) {
                          self->OnVersion(std::move(route));
                        });
}

void TurnRunner::OnVersion(absl::StatusOr<Route> route) {
  if (!route.ok()) return Refuse(route.status());
  if (broken()) return Refuse(EndingOfBreak(*broken()).status);
  route_ = *std::move(route);
  turn_.model = route_.model.model();
  turn_.sampling = WithDefaults(turn_.sampling, route_.model.default_sampling());
  if (!turn_.sampling.has_seed()) turn_.sampling.set_seed(DrawSeed());
  turn_.seed = turn_.sampling.seed();
  const auto recorded = [self = shared_from_this()](absl::StatusOr<v1::Turn> turn) {
    self->OnRecorded(std::move(turn));
  };
  if (request_.session_id.empty()) {
    recorded(v1::Turn());
  } else if (request_.regenerate_turn_id.empty()) {
    parts_.store.BeginTurn(turn_, recorded);
  } else {
    parts_.store.RestartTurn(turn_, recorded);
  }
}

void TurnRunner::OnRecorded(absl::StatusOr<v1::Turn> turn) {
  if (!turn.ok()) return Refuse(turn.status());
  parts_.metrics.turns_running.Increment();
  v1::ChatEvent event;
  v1::TurnStarted& started = *event.mutable_turn_started();
  started.set_session_id(request_.session_id);
  started.set_turn_id(turn_id_);
  started.set_turn_number(turn->number());
  *started.mutable_model() = turn_.model;
  started.set_seed(turn_.seed);
  sink_->Send(std::move(event));
  LogInfo("turn started", {{"request_id", request_.request_id},
                           {"session_id", request_.session_id},
                           {"turn_id", turn_id_},
                           {"model", turn_.model.name()},
                           {"version", absl::StrCat(turn_.model.version())},
                           {"images", absl::StrCat(prompt_.DistinctImages().size())}});
  Attempt();
}

void TurnRunner::Attempt() {
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  started_.Clear();
  auto delivery = FeatureDelivery::Create(
      parts_, prompt_, route_, request_.request_id, request_.priority, deadline_,
      [self = shared_from_this()](absl::StatusOr<FeatureDelivery::Outcome> outcome) {
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
  Generate(*outcome);
}

void TurnRunner::Generate(const FeatureDelivery::Outcome& outcome) {
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
  auto self = shared_from_this();
  auto call = GenerateCall::Create(
      parts_.llm, std::move(request), deadline_,
      {.on_event = [self](v1::GenerateResponse& event) { return self->OnEvent(event); },
       .on_done = [self](absl::Status status) { self->OnGenerated(std::move(status)); }});
  SetStop([call] { call->Cancel(); });
  call->Start(parts_.generator);
}

bool TurnRunner::OnEvent(v1::GenerateResponse& event) {
  if (!protocol_error_.ok()) return false;
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
  if (started.model().name() == turn_.model.name() &&
      started.model().version() == turn_.model.version()) {
    return true;
  }
  protocol_error_ = absl::InternalError(
      absl::StrCat("version ", started.model().version(), " of \"", started.model().name(),
                   "\" answered, asked was version ", turn_.model.version()));
  return false;
}

bool TurnRunner::OnDelta(v1::GenerateDelta& delta) {
  token_count_ += static_cast<uint32_t>(delta.token_ids_size());
  if (delta.text_offset() != text_.size()) {
    protocol_error_ = absl::InternalError(absl::StrCat(
        "text at byte ", delta.text_offset(), " came, byte ", text_.size(), " was expected"));
    return false;
  }
  if (!delta.text().empty()) {
    const auto now = steady_clock::now();
    if (!first_text_) {
      first_text_ = now;
      parts_.metrics.time_to_first_token_seconds.Observe(Seconds(request_.received, now));
    } else {
      parts_.metrics.time_between_tokens_seconds.Observe(Seconds(*last_text_, now));
    }
    last_text_ = now;
  } else if (delta.logprobs().empty()) {
    return true;  // text is held back; nothing for the client yet
  }
  v1::ChatEvent event;
  v1::TextDelta& text = *event.mutable_text();
  text.set_offset(text_.size());
  text_ += delta.text();
  text.mutable_text()->swap(*delta.mutable_text());
  text.mutable_logprobs()->Swap(delta.mutable_logprobs());
  sink_->Send(std::move(event));
  return true;
}

void TurnRunner::OnGenerated(absl::Status status) {
  if (!protocol_error_.ok()) return Conclude(EndingOf(parts_.llm.Explain(protocol_error_)));
  if (finished_ && status.ok()) return Conclude(EndingOf(status));
  if (const auto why = broken()) return Conclude(EndingOfBreak(*why));
  if (status.ok()) status = absl::InternalError("the answer ended without a final event");
  if (TryAgain(status)) return;
  if (v1::MissingFeatures missing; GetDetail(status, &missing)) {
    status = OverloadedError("it did not keep the features of the pictures that it was just given",
                             kLongestDelay);
  }
  Conclude(EndingOf(parts_.llm.Explain(status)));
}

bool TurnRunner::TryAgain(const absl::Status& status) {
  if (token_count_ > 0 || !text_.empty()) return false;
  v1::MissingFeatures missing;
  if (GetDetail(status, &missing)) {
    for (const v1::FeatureKey& key : missing.keys()) parts_.features.Remove(key);
    if (std::exchange(refilled_, true)) return false;
    Attempt();
    return true;
  }
  if (absl::IsFailedPrecondition(status) && request_.model.version() == 0) {
    if (std::exchange(rerouted_, true)) return false;
    Reroute();
    return true;
  }
  if (absl::IsUnavailable(status)) {
    if (std::exchange(retried_, true)) return false;
    AttemptLater(DelayOf(status));
    return true;
  }
  return false;
}

void TurnRunner::AttemptLater(milliseconds delay) {
  SetStop(nullptr);  // Attempt sees a break; the wait is short
  // The alarm keeps its callback after it has rung, so that the turn must leave it by then.
  alarm_.Set(system_clock::now() + delay, [self = shared_from_this()](bool) mutable {
    const auto runner = std::move(self);
    runner->Attempt();
  });
}

// The version went away between choice and call: choose again among those that are there now.
void TurnRunner::Reroute() {
  SetStop(nullptr);
  parts_.router.Refresh([self = shared_from_this()] {
    auto route = self->parts_.router.Find(self->turn_.model.name(), 0,
                                          !self->prompt_.DistinctImages().empty());
    if (!route.ok()) return self->Conclude(self->EndingOf(route.status()));
    self->route_ = *std::move(route);
    self->turn_.model = self->route_.model.model();
    self->Attempt();
  });
}

TurnRunner::Ending TurnRunner::EndingOf(const absl::Status& status) {
  if (status.ok()) {
    switch (finished_->reason()) {
      case v1::FINISH_REASON_STOP:
      case v1::FINISH_REASON_LENGTH:
      case v1::FINISH_REASON_CONTEXT:
        return {v1::TURN_STATE_FINISHED, finished_->reason(), absl::OkStatus(), ""};
      case v1::FINISH_REASON_DEADLINE:
        return EndingOf(absl::DeadlineExceededError(""));
      default:
        break;
    }
    // Nobody asked for that here.
    auto ending = EndingOf(parts_.llm.Explain(OverloadedError(
        absl::StrCat("the answer was broken off there: ", FinishReasonLabel(finished_->reason())),
        kLongestDelay)));
    ending.reason = finished_->reason();
    return ending;
  }
  Ending ending;
  ending.status = status;
  if (absl::IsDeadlineExceeded(status)) {
    ending.reason = v1::FINISH_REASON_DEADLINE;
    ending.status = absl::DeadlineExceededError(
        absl::StrCat("time ran out: ",
                     deadline_ < request_.deadline ? "the gateway's --request-timeout"
                                                   : "the deadline of the call",
                     " ended the answer after ", text_.size(), " bytes, which are kept"));
  }
  ending.message = std::string(ending.status.message());
  return ending;
}

TurnRunner::Ending TurnRunner::EndingOfBreak(TurnBreak why) const {
  Ending ending;
  ending.reason = v1::FINISH_REASON_CANCELLED;
  switch (why) {
    case TurnBreak::kCancelTurn:
      ending.message = "stopped by CancelTurn";
      break;
    case TurnBreak::kClientGone:
      ending.status = absl::CancelledError("the client went away");
      if (system_clock::now() + kDeadlineSlack >= request_.deadline) {
        ending.reason = v1::FINISH_REASON_DEADLINE;
        ending.status = absl::DeadlineExceededError("the deadline of the call has passed");
      }
      ending.message = std::string(ending.status.message());
      break;
    case TurnBreak::kShutdown:
      ending.reason = v1::FINISH_REASON_INTERRUPTED;
      ending.status = OverloadedError("the gateway was stopped during this answer; ask again",
                                      std::chrono::seconds(1));
      ending.message = std::string(ending.status.message());
      break;
  }
  return ending;
}

TurnResult TurnRunner::ResultOf(const Ending& ending) {
  const auto now = steady_clock::now();
  TurnResult result;
  result.session_id = request_.session_id;
  result.turn_id = turn_id_;
  result.state = ending.state;
  result.reason = ending.reason;
  result.error_message = ending.message;
  result.answer_text = text_;
  result.model = turn_.model;
  if (finished_) {
    result.tokens = finished_->tokens();
    result.usage = finished_->usage();
    result.timings = finished_->timings();
  } else {
    result.usage.set_text_tokens(started_.text_tokens());
    result.usage.set_image_tokens(started_.image_tokens());
    result.usage.set_cached_tokens(started_.cached_tokens());
    result.usage.set_generated_tokens(token_count_);
    result.timings.set_queue_seconds(started_.queue_seconds());
  }
  result.timings.set_vision_seconds(vision_seconds_);
  if (first_text_) {
    result.timings.set_time_to_first_token_seconds(Seconds(request_.received, *first_text_));
  }
  result.timings.set_total_seconds(Seconds(request_.received, now));
  return result;
}

void TurnRunner::Conclude(Ending ending) {
  SetStop(nullptr);
  const TurnResult result = ResultOf(ending);
  parts_.metrics.turns_running.Decrement();
  parts_.metrics.CountTurn(result.reason, result.timings.total_seconds());
  parts_.metrics.CountTokens(result.usage);
  if (request_.permit) {
    request_.permit->Release(uint64_t{result.usage.text_tokens()} + result.usage.image_tokens() +
                             result.usage.generated_tokens());
  }
  LogInfo("turn ended",
          {{"request_id", request_.request_id},
           {"session_id", request_.session_id},
           {"turn_id", turn_id_},
           {"finish_reason", FinishReasonLabel(result.reason)},
           {"tokens", absl::StrCat(result.usage.generated_tokens())},
           {"first_token_s", absl::StrCat(result.timings.time_to_first_token_seconds())},
           {"total_s", absl::StrCat(result.timings.total_seconds())}});
  v1::ChatEvent event;
  if (ending.status.ok()) {
    v1::TurnFinished& finished = *event.mutable_turn_finished();
    finished.set_reason(result.reason);
    *finished.mutable_usage() = result.usage;
    *finished.mutable_timings() = result.timings;
    *finished.mutable_model() = result.model;
    finished.set_text_bytes(text_.size());
  }
  const auto stored = [self = shared_from_this(), ending, event = std::move(event)](
                          const absl::Status& status) { self->OnStored(ending, event, status); };
  if (request_.session_id.empty()) return stored(absl::OkStatus());
  parts_.store.FinishTurn(result, stored);
}

void TurnRunner::OnStored(const Ending& ending, const v1::ChatEvent& event,
                          const absl::Status& stored) {
  // First, so that the next question of a client that has seen the end is not refused.
  parts_.running.Remove(Key());
  absl::Status status = ending.status;
  if (status.ok() && !stored.ok()) status = stored;
  if (status.ok()) sink_->Send(event);
  End(status);
}

void TurnRunner::Refuse(const absl::Status& status) {
  SetStop(nullptr);
  parts_.running.Remove(Key());
  End(status.ok() ? absl::CancelledError("stopped by CancelTurn") : status);
}

void TurnRunner::End(const absl::Status& status) {
  on_end_(status);
  sink_->Close(status);  // last: with its last call over, the process may end
}

}  // namespace llava
