// Begin and end of a turn. What lies between: turn_attempts.cc.

#include "server/gateway/turn_runner.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/call_fault.h"
#include "server/gateway/context_fit.h"
#include "server/gateway/resumable_calls.h"
#include "server/gateway/turn_id.h"
#include "server/runtime/logging.h"
#include "server/runtime/service_process.h"
#include "server/runtime/status.h"
#include "server/wire/prompt_size.h"
#include "server/wire/sampling.h"

namespace llava {
namespace {

using std::chrono::steady_clock;
using std::chrono::system_clock;

// A reader that is so far behind is sent away.
constexpr size_t kMaxBacklogBytes = 64u << 10;
// Between tries to store the end of a turn; the longest is well within the time of a shutdown.
constexpr std::chrono::milliseconds kFirstSaveDelay{50}, kLongestSaveDelay{1000};

uint64_t DrawSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

std::shared_ptr<TurnRunner> TurnRunner::Create(const TurnParts& parts, TurnRequest request,
                                               std::unique_ptr<TurnSink> sink,
                                               std::function<void(const absl::Status&)> on_end) {
  std::shared_ptr<TurnRunner> runner(new TurnRunner(parts, std::move(request)));
  runner->MakeLive();
  // From the begin of an empty answer: it cannot be refused.
  (void)runner->live_->Attach({std::move(sink), std::move(on_end)}, {});
  return runner;
}

TurnRunner::TurnRunner(const TurnParts& parts, TurnRequest request)
    : parts_(parts),
      request_(std::move(request)),
      turn_id_(request_.regenerate_turn_id.empty() ? NewTurnId() : request_.regenerate_turn_id),
      deadlines_{request_.deadline,
                 std::min(request_.deadline, request_.asked + parts_.options.request_timeout)} {}

double TurnRunner::Seconds(steady_clock::time_point from, steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

void TurnRunner::MakeLive() {
  const bool detaches = request_.detaches();
  live_ = LiveAnswer::Create(detaches ? kMaxBacklogBytes : 0, [weak = weak_from_this(), detaches] {
    // A turn that may outlive its readers waits for CheckReaders.
    if (const auto self = weak.lock(); self && !detaches) self->Break(TurnBreak::kClientGone);
  });
}

std::string TurnRunner::Key() const {
  return has_session() ? request_.session_id : absl::StrCat("call ", turn_id_);
}

void TurnRunner::Start() {
  // Beside the call's own: the turn may outlive it.
  admitted_ = parts_.admission.Enter();
  if (!admitted_) return End(ShuttingDown(), {});
  const auto self = shared_from_this();
  if (recovered_) {
    return parts_.running.AddInLine(Key(), turn_id_, self, [self] { self->TakeUp(); });
  }
  if (auto status = parts_.running.Add(Key(), turn_id_, self); !status.ok()) {
    if (!JoinRunning()) End(status, {});
    return;
  }
  choice_ = request_.model;
  choice_.key = has_session() ? request_.session_id : request_.request_id;
  if (!has_session()) {
    prompt_ = request_.prompt;
    wanted_ = request_.sampling;
    return FindVersion();
  }
  LoadConversation();
}

void TurnRunner::LoadConversation() {
  parts_.store.GetConversation(request_.session_id, recovered_ ? RequestKey{} : request_.key,
                               [self = shared_from_this()](absl::StatusOr<Conversation> found) {
                                 self->OnConversation(std::move(found));
                               });
}

// The same request may have come twice at a time, so that TurnStart did not see the other one.
bool TurnRunner::JoinRunning() {
  const auto other = parts_.running.FindRepeated(Key(), request_.key);
  if (other.ok() && !*other) return false;
  if (other.ok()) {
    for (TurnReader& reader : live_->TakeReaders()) {
      if (auto status = (*other)->Attach(reader, {}); !status.ok()) reader.End(status);
    }
  }
  End(other.status(), {});
  return true;
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

absl::Status TurnRunner::Attach(TurnReader reader, const ResumePoint& from) {
  return live_->Attach(std::move(reader), from);
}

void TurnRunner::CheckReaders(steady_clock::time_point now) {
  const auto alone = live_->alone_since();
  if (alone && now - *alone > parts_.options.resume_grace) Break(TurnBreak::kAbandoned);
}

void TurnRunner::SetStop(std::function<void()> stop) {
  {
    MutexLock lock(mutex_);
    stop_ = stop;
    if (!break_ || !stop_) return;
  }
  stop();
}

bool TurnRunner::journal_failed() {
  MutexLock lock(mutex_);
  return !journal_fault_.ok();
}

std::optional<TurnBreak> TurnRunner::broken() {
  MutexLock lock(mutex_);
  return break_;
}

void TurnRunner::OnConversation(absl::StatusOr<Conversation> found) {
  if (!found.ok()) {
    if (recovered_ && !absl::IsNotFound(found.status())) return LoadAgain();
    return Refuse(found.status());
  }
  if (!found->repeated_turn_id.empty()) {
    parts_.running.Remove(Key());
    for (const TurnReader& reader : live_->TakeReaders()) {
      ReplayTurn(found->turns.front(), reader, {});
    }
    // For a reader that has found this one meanwhile.
    return End(OverloadedError("this request was sent before; ask again to get its answer",
                               std::chrono::milliseconds(100)),
               {});
  }
  if (recovered_) {  // what was asked after it is none of its prompt
    auto& turns = found->turns;
    const auto mine = std::find_if(turns.begin(), turns.end(), [this](const StoredTurn& stored) {
      return stored.turn.id() == turn_id_;
    });
    if (mine != turns.end()) turns.erase(mine + 1, turns.end());
  }
  const bool anew = !request_.regenerate_turn_id.empty();
  if (anew && (found->turns.empty() || found->turns.back().turn.id() != turn_id_)) {
    return Refuse(absl::InvalidArgumentError(
        absl::StrCat("turn_id \"", turn_id_, "\" is not the last turn of this session; only that ",
                     "one can be answered anew")));
  }
  if (auto status = CheckPictures(request_.images, found->images); !status.ok()) {
    return Refuse(status);
  }
  turn_.id = turn_id_;
  turn_.session_id = request_.session_id;
  turn_.user_text = std::move(request_.text);
  turn_.images = std::move(request_.images);
  turn_.request = request_.key;
  turn_.terms = {.key_name = request_.caller.name(),
                 .weight = request_.caller.weight(),
                 .priority = request_.priority,
                 .tokens = request_.permit ? static_cast<uint64_t>(request_.permit->reserved()) : 0,
                 .asked = request_.asked,
                 .deadline = request_.deadline,
                 .on_disconnect = request_.on_disconnect};
  if (choice_.name.empty()) {
    auto usual = ModelChoiceOf(found->session);
    if (!usual.ok()) return Refuse(usual.status());
    choice_.name = std::move(usual->name);
    if (!choice_.is_fixed()) {
      choice_.version = usual->version;
      choice_.label = std::move(usual->label);
    }
  }
  wanted_ = WithDefaults(request_.sampling, found->session.sampling());
  fits_ = found->session.context_overflow() == v1::CONTEXT_OVERFLOW_DROP_OLDEST_TURNS;
  conversation_ = *std::move(found);
  if (anew) {  // its own question is asked again, without the answer that there is
    const v1::Turn& last = conversation_.turns.back().turn;
    turn_.user_text = last.user_text();
    for (const v1::ImageInfo& info : last.images()) turn_.images.push_back({info, nullptr});
  }
  if (anew && !recovered_) {  // who has bytes of the answer before shall not add these to them
    turn_.taken_up = conversation_.turns.back().taken_up;
    turn_.taken_up.push_back(0);
    answer_.taken_up = turn_.taken_up;
    live_->Restore("", answer_.taken_up);
  }
  prompt_ = PromptOf(conversation_, turn_);
  if (!recovered_) return FindVersion();
  turn_.sampling = request_.sampling;
  conversation_ = {};
  Continue();
}

void TurnRunner::FindVersion() {
  parts_.router.Resolve(choice_, !prompt_.DistinctImages().empty(),
                        [self = shared_from_this()](absl::StatusOr<Route> route) {
                          self->OnVersion(std::move(route));
                        });
}

void TurnRunner::OnVersion(absl::StatusOr<Route> route) {
  if (!route.ok()) return Refuse(route.status());
  if (const auto why = broken()) {
    return Refuse(BrokenEnding(*why, deadlines_, /*kept=*/false).status);
  }
  if (auto status = Take(*std::move(route)); !status.ok()) return Refuse(status);
  if (!has_session()) return OnRecorded(0U);
  if (!fits_) return Record();
  auto fit = ContextFit::Create(
      parts_, conversation_, turn_, route_,
      {request_.caller, request_.request_id, request_.priority, deadlines_.turn},
      [self = shared_from_this()](absl::Status status) {
        if (const auto why = self->broken()) {
          return self->Refuse(BrokenEnding(*why, self->deadlines_, /*kept=*/false).status);
        }
        self->SetStop(nullptr);
        if (IsVersionGone(status) && !std::exchange(self->fitted_again_, true)) {
          return self->parts_.router.Refresh([self] { self->FindVersion(); });
        }
        if (!status.ok()) return self->Refuse(status);
        self->prompt_ = PromptOf(self->conversation_, self->turn_);
        self->Record();
      });
  SetStop([fit] { fit->Cancel(); });
  fit->Start();
}

absl::Status TurnRunner::Take(Route route) {
  const v1::ModelInfo& model = route.model;
  v1::SamplingParams sampling = WithDefaults(wanted_, model.default_sampling());
  if (!sampling.has_seed()) sampling.set_seed(turn_.seed != 0 ? turn_.seed : DrawSeed());
  // What question and session ask for may be right each, but not together.
  if (auto status = CheckSampling(sampling); !status.ok()) return status;
  if (auto status = CheckObeys(model); !status.ok()) return status;
  // What the service would refuse is not worth a record, which would keep the text, nor the work of
  // the vision service.
  const uint64_t context = model.context_tokens();
  auto fits = CheckTextBytes(fits_ ? turn_.user_text.size() : prompt_.TextBytes(), context);
  if (fits.ok()) {  // an overview, at least, of each picture
    fits = CheckPictureTokens(fits_ ? turn_.images.size() : prompt_.PictureUses(),
                              std::min(model.image_tokens(), model.feature_rows()), context);
  }
  if (!fits.ok()) return fits;
  turn_.model = model.model();
  turn_.seed = sampling.seed();
  turn_.sampling = std::move(sampling);
  route_ = std::move(route);
  return absl::OkStatus();
}

absl::Status TurnRunner::CheckObeys(const v1::ModelInfo& model) const {
  if (!HasConstraint(wanted_) || model.constrains_output()) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("SamplingParams.constraint: model ", model.model().name(), " version ",
                   model.model().version(),
                   " is served by a llava-llm, or has a tokenizer, that cannot obey it"));
}

void TurnRunner::Record() {
  const auto recorded = [self = shared_from_this()](absl::StatusOr<uint32_t> number) {
    self->OnRecorded(std::move(number));
  };
  conversation_ = {};
  if (request_.regenerate_turn_id.empty()) {
    parts_.store.BeginTurn(turn_, recorded);
  } else {
    parts_.store.RestartTurn(turn_, recorded);
  }
}

void TurnRunner::OnRecorded(absl::StatusOr<uint32_t> number) {
  if (!number.ok()) return Refuse(number.status());
  number_ = *number;
  TellStarted();
  Attempt();
}

void TurnRunner::TellStarted() {
  if (!std::exchange(counted_, true)) parts_.metrics.turns_running.Increment();
  v1::TurnStarted started;
  started.set_session_id(request_.session_id);
  started.set_turn_id(turn_id_);
  started.set_turn_number(number_);
  *started.mutable_model() = turn_.model;
  started.set_seed(turn_.seed);
  if (!has_session() && request_.detaches()) {
    parts_.resumable.Keep(turn_id_, request_.caller, live_);
  }
  live_->Begin(started);
  LogInfo(recovered_ ? "turn taken up" : "turn started",
          {{"request_id", request_.request_id},
           {"session_id", request_.session_id},
           {"turn_id", turn_id_},
           {"model", turn_.model.name()},
           {"version", absl::StrCat(turn_.model.version())},
           {"images", absl::StrCat(prompt_.DistinctImages().size())}});
}

TurnEnding TurnRunner::EndingOf(const absl::Status& status) const {
  return FailedEnding(status, deadlines_, text_bytes_);
}

TurnEnding TurnRunner::EndingOfBreak(TurnBreak why) {
  TurnEnding ending = BrokenEnding(why, deadlines_, has_session());
  if (why == TurnBreak::kJournalFault) {
    MutexLock lock(mutex_);
    // A full disk as well: who is told to try again would only read this ending again.
    ending.status = absl::IsUnavailable(journal_fault_)
                        ? absl::InternalError(journal_fault_.message())
                        : journal_fault_;
  }
  return ending;
}

TurnResult TurnRunner::ResultOf(const TurnEnding& ending) const {
  const auto now = steady_clock::now();
  TurnResult result;
  result.session_id = request_.session_id;
  result.turn_id = turn_id_;
  result.state = ending.state;
  result.reason = ending.reason;
  result.error_code = ending.status.code();
  result.error_message = ending.status.ok() ? ending.message : std::string(ending.status.message());
  result.answer_text = live_->text();
  result.taken_up = answer_.taken_up;
  result.model = turn_.model;
  if (finished_) {
    result.tokens = finished_->tokens();
    result.usage = finished_->usage();
    result.timings = finished_->timings();
  } else {
    result.usage.set_text_tokens(started_.text_tokens());
    result.usage.set_image_tokens(started_.image_tokens());
    result.usage.set_cached_tokens(started_.cached_tokens());
    result.usage.set_generated_tokens(static_cast<uint32_t>(answer_.tokens.ids_size()));
    result.timings.set_queue_seconds(started_.queue_seconds());
  }
  result.timings.set_vision_seconds(vision_seconds_);
  if (first_text_ && !recovered_) {
    result.timings.set_time_to_first_token_seconds(Seconds(request_.received, *first_text_));
  }
  result.timings.set_total_seconds(Seconds(request_.received, now));
  return result;
}

TurnSample TurnRunner::SampleOf(const TurnEnding& ending) {
  const absl::StatusCode code = ending.status.code();
  const bool fault = code == absl::StatusCode::kInternal || code == absl::StatusCode::kUnknown ||
                     code == absl::StatusCode::kDataLoss;
  TurnSample sample;
  sample.failed = answer_.deaths > 0 || (asked_ && fault && !journal_failed());
  if (first_text_ && !recovered_) sample.first_token = Seconds(request_.received, *first_text_);
  // Who is refused, or left by a service that went away, did not wait for it.
  const bool given_up =
      ending.reason == v1::FINISH_REASON_CANCELLED || ending.reason == v1::FINISH_REASON_DEADLINE;
  if (!first_text_ && !recovered_ && asked_ && !sample.failed && given_up) {
    sample.given_up = Seconds(request_.received, steady_clock::now());
  }
  if (pieces_ > 1) sample.between_tokens = Seconds(*first_text_, *last_text_) / (pieces_ - 1);
  sample.largest_gap = largest_gap_;
  return sample;
}

void TurnRunner::Conclude(TurnEnding ending) {
  SetStop(nullptr);
  EndTry();
  if (!has_session()) return Store(ending);
  // What was received is told and kept before the end.
  parts_.journal.Flush([self = shared_from_this(), ending](const absl::Status&) {
    if (ending.suspended) return self->Suspend(ending);
    if (!self->journal_failed()) return self->Store(ending);
    self->finished_.reset();  // it speaks of text that was not told
    self->Store(self->EndingOfBreak(TurnBreak::kJournalFault));
  });
}

void TurnRunner::Store(const TurnEnding& ending) {
  TurnResult result = ResultOf(ending);
  if (std::exchange(counted_, false)) parts_.metrics.turns_running.Decrement();
  parts_.metrics.CountTurn(result.reason, result.timings.total_seconds());
  parts_.metrics.CountTokens(result.usage);
  // What ended without a word for a fault of others, or as refused, says nothing of the version.
  const TurnSample sample = SampleOf(ending);
  const bool whole = ending.state == v1::TURN_STATE_FINISHED;
  if (whole || first_text_ || sample.failed || sample.given_up) {
    parts_.samples.Add(turn_.model, sample);
  }
  if (request_.permit) {
    request_.permit->Release(uint64_t{result.usage.text_tokens()} + result.usage.image_tokens() +
                             result.usage.generated_tokens());
  }
  const LogFields fields = {
      {"request_id", request_.request_id},
      {"session_id", request_.session_id},
      {"turn_id", turn_id_},
      {"finish_reason", FinishReasonLabel(result.reason)},
      {"code", absl::StatusCodeToString(ending.status.code())},
      {"error", result.error_message},
      {"tokens", absl::StrCat(result.usage.generated_tokens())},
      {"first_token_s", absl::StrCat(result.timings.time_to_first_token_seconds())},
      {"total_s", absl::StrCat(result.timings.total_seconds())}};
  IsBroken(ending.status) ? LogError("turn ended", fields) : LogInfo("turn ended", fields);
  if (!has_session()) return OnStored(ending, result);
  Save(ending, result);
}

// A session that was given back before would be asked on without this answer in the prompt.
void TurnRunner::Save(const TurnEnding& ending, const TurnResult& result) {
  const auto done = [self = shared_from_this(), ending, result](const absl::Status& stored) {
    if (stored.ok()) return self->OnStored(ending, result);
    if (self->save_delay_.count() == 0) {
      LogWarning("end of a turn not stored yet", {{"request_id", self->request_.request_id},
                                                  {"session_id", self->request_.session_id},
                                                  {"turn_id", self->turn_id_},
                                                  {"error", std::string(stored.message())}});
    }
    // The next process tries as well as this one, which wants to end.
    if (self->parts_.admission.draining()) {
      return self->Suspend(self->EndingOfBreak(TurnBreak::kShutdown));
    }
    self->save_delay_ = std::clamp(2 * self->save_delay_, kFirstSaveDelay, kLongestSaveDelay);
    self->Later(self->save_delay_, [self, ending, result] { self->Save(ending, result); });
  };
  parts_.store.FinishTurn(result, done);
}

void TurnRunner::OnStored(const TurnEnding& ending, const TurnResult& result) {
  if (answer_.id != 0) parts_.journal.End(answer_.id);
  // Before the readers, so that the next question of a client that has seen the end is not refused.
  parts_.running.Remove(Key());
  v1::TurnFinished finished;
  finished.set_reason(result.reason);
  *finished.mutable_usage() = result.usage;
  *finished.mutable_timings() = result.timings;
  *finished.mutable_model() = result.model;
  finished.set_text_bytes(result.answer_text.size());
  End(ending.status, finished);
}

void TurnRunner::Suspend(const TurnEnding& ending) {
  if (std::exchange(counted_, false)) parts_.metrics.turns_running.Decrement();
  LogInfo("turn left in the journal", {{"request_id", request_.request_id},
                                       {"session_id", request_.session_id},
                                       {"turn_id", turn_id_},
                                       {"bytes", absl::StrCat(text_bytes_)}});
  parts_.running.Remove(Key(), /*over=*/false);
  End(ending.status, {});
}

void TurnRunner::Refuse(const absl::Status& status) {
  if (recovered_) return Conclude(EndingOf(status));  // it is recorded
  SetStop(nullptr);
  parts_.running.Remove(Key());
  End(status.ok() ? absl::CancelledError("stopped by CancelTurn") : status, {});
}

void TurnRunner::End(const absl::Status& status, const v1::TurnFinished& finished) {
  if (request_.permit) request_.permit->Release(0);  // of a turn that was not stored
  parts_.resumable.Ended(turn_id_);
  request_.memory.reset();
  if (admitted_) parts_.admission.Leave();  // from here on the parts may go
  live_->End(status, finished);             // last: with its last call over, the process may end
}

}  // namespace llava
