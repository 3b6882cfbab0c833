#include "server/gateway/turn_start.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "server/runtime/status.h"

namespace llava {
namespace {

constexpr double kBytesPerToken = 3;
// Where neither request nor model says: what services generate by default.
constexpr uint32_t kUsualAnswerTokens = 512;

void Follow(const TurnParts& parts, const std::string& session_id, const std::string& turn_id,
            const ResumePoint& from, const TurnReader& reader, bool again) {
  parts.store.GetTurn(
      session_id, turn_id,
      [&parts, session_id, turn_id, from, reader, again](const absl::StatusOr<StoredTurn>& stored) {
        if (!stored.ok()) return reader.End(stored.status());
        if (stored->turn.state() != v1::TURN_STATE_RUNNING) {
          return ReplayTurn(*stored, reader, from);
        }
        if (const auto running = parts.running.Find(session_id, turn_id)) {
          if (auto status = running->Attach(reader, from); !status.ok()) reader.End(status);
          return;
        }
        // It ended between the two looks.
        if (!again) return Follow(parts, session_id, turn_id, from, reader, /*again=*/true);
        reader.End(OverloadedError("this turn is not ready to be read; try again",
                                   std::chrono::milliseconds(500)));
      });
}

}  // namespace

void FollowTurn(const TurnParts& parts, const std::string& session_id, const std::string& turn_id,
                const ResumePoint& from, const TurnReader& reader) {
  Follow(parts, session_id, turn_id, from, reader, /*again=*/false);
}

double EstimateTokens(const TurnRequest& request, const ModelRouter& router) {
  size_t bytes = request.text.size(), pictures = request.images.size();
  for (const Prompt::Message& message : request.prompt.messages) {
    bytes += message.text.size();
    pictures += message.images.size();
  }
  uint32_t answer = kUsualAnswerTokens, image_tokens = 0;
  if (const auto models = router.LanguageModels(); models.ok() && !models->empty()) {
    const v1::ModelInfo* model = &models->front();
    for (const v1::ModelInfo& each : *models) {
      if (each.model().name() == request.model.name) model = &each;
    }
    image_tokens = model->image_tokens();
    if (model->default_sampling().has_max_new_tokens()) {
      answer = model->default_sampling().max_new_tokens();
    }
    if (request.sampling.has_max_new_tokens()) answer = request.sampling.max_new_tokens();
    // No answer is longer than the context.
    if (model->context_tokens() > 0) answer = std::min(answer, model->context_tokens());
  }
  return static_cast<double>(bytes) / kBytesPerToken +
         static_cast<double>(pictures) * image_tokens + answer;
}

void TurnStart::Begin(const TurnParts& parts, std::shared_ptr<RpcScope> scope, TurnRequest request,
                      std::unique_ptr<TurnSink> sink) {
  request.caller = scope->caller();
  request.request_id = scope->request_id();
  request.received = scope->received();
  std::shared_ptr<TurnStart> start(
      new TurnStart(parts, std::move(scope), std::move(request), std::move(sink)));
  // Until the runner listens for that itself.
  start->sink_->SetOnGone([weak = start->weak_from_this()] {
    if (const auto self = weak.lock()) self->OnGone();
  });
  if (start->request_.session_id.empty()) return start->AskForPlace();
  parts.owners.Check(start->request_.caller, start->request_.session_id,
                     [start](const absl::Status& owned) {
                       if (!owned.ok()) return start->Refuse(owned);
                       start->FindAskedBefore();
                     });
}

TurnStart::TurnStart(const TurnParts& parts, std::shared_ptr<RpcScope> scope, TurnRequest request,
                     std::unique_ptr<TurnSink> sink)
    : parts_(parts),
      scope_(std::move(scope)),
      request_(std::move(request)),
      sink_(std::move(sink)) {}

void TurnStart::FindAskedBefore() {
  if (request_.key.key.empty()) return AskForPlace();
  const auto running = parts_.running.FindRepeated(request_.session_id, request_.key);
  if (!running.ok()) return Refuse(running.status());
  if (*running) {
    const TurnReader reader = TakeReader();
    if (auto status = (*running)->Attach(reader, {}); !status.ok()) reader.End(status);
    return;
  }
  parts_.store.FindRequest(request_.session_id, request_.key,
                           [self = shared_from_this()](const absl::StatusOr<std::string>& turn_id) {
                             if (!turn_id.ok()) return self->Refuse(turn_id.status());
                             if (turn_id->empty()) return self->AskForPlace();
                             FollowTurn(self->parts_, self->request_.session_id, *turn_id, {},
                                        self->TakeReader());
                           });
}

TurnReader TurnStart::TakeReader() {
  return {std::move(sink_), [scope = scope_](const absl::Status& status) { scope->End(status); }};
}

void TurnStart::AskForPlace() {
  const uint64_t ticket = parts_.gate.Enter(
      request_.caller, EstimateTokens(request_, parts_.router), request_.priority,
      request_.deadline,
      [self = shared_from_this()](absl::StatusOr<std::shared_ptr<TurnPermit>> permit) {
        self->OnPlace(std::move(permit));
      },
      request_.charged);
  {
    MutexLock lock(mutex_);
    ticket_ = ticket;
    if (!gone_) return;
  }
  parts_.gate.Cancel(ticket);  // it went before there was a ticket
}

void TurnStart::OnPlace(absl::StatusOr<std::shared_ptr<TurnPermit>> permit) {
  if (!permit.ok()) return Refuse(permit.status());
  {
    MutexLock lock(mutex_);
    if (gone_) permit = absl::CancelledError("the client went away");
  }
  if (!permit.ok()) return Refuse(permit.status());
  request_.permit = *std::move(permit);
  TurnRunner::Create(parts_, std::move(request_), std::move(sink_),
                     [scope = scope_](const absl::Status& status) { scope->End(status); })
      ->Start();
}

void TurnStart::OnGone() {
  std::optional<uint64_t> ticket;
  {
    MutexLock lock(mutex_);
    gone_ = true;
    ticket = ticket_;
  }
  if (ticket) parts_.gate.Cancel(*ticket);
}

void TurnStart::Refuse(const absl::Status& status) {
  scope_->End(status);
  sink_->Close(status);
}

}  // namespace llava
