#include "server/gateway/turn_start.h"

#include <utility>

namespace llava {
namespace {

constexpr double kBytesPerToken = 3;
// Where neither request nor model says: what services generate by default.
constexpr uint32_t kUsualAnswerTokens = 512;

}  // namespace

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
                       start->AskForPlace();
                     });
}

TurnStart::TurnStart(const TurnParts& parts, std::shared_ptr<RpcScope> scope, TurnRequest request,
                     std::unique_ptr<TurnSink> sink)
    : parts_(parts),
      scope_(std::move(scope)),
      request_(std::move(request)),
      sink_(std::move(sink)) {}

void TurnStart::AskForPlace() {
  const uint64_t ticket = parts_.gate.Enter(
      request_.caller, EstimateTokens(request_, parts_.router), request_.priority,
      request_.deadline,
      [self = shared_from_this()](absl::StatusOr<std::shared_ptr<TurnPermit>> permit) {
        self->OnPlace(std::move(permit));
      });
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
