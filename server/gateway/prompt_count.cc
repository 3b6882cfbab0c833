#include "server/gateway/prompt_count.h"

#include <utility>

#include "server/runtime/status.h"

namespace llava {
namespace {

// For who did not keep what it was given.
constexpr std::chrono::milliseconds kBringAgain{1000};

}  // namespace

std::shared_ptr<PromptCount> PromptCount::Create(const TurnParts& parts, const Prompt& prompt,
                                                 const Route& route, std::shared_ptr<Backend> llm,
                                                 FeatureDelivery::Terms terms, Done done) {
  return std::shared_ptr<PromptCount>(
      new PromptCount(parts, prompt, route, std::move(llm), std::move(terms), std::move(done)));
}

void PromptCount::Start() { Ask(FeatureKeys(prompt_.DistinctImages(), route_)); }

void PromptCount::Cancel() {
  std::shared_ptr<CallContext> context;
  std::shared_ptr<FeatureDelivery> delivery;
  {
    MutexLock lock(mutex_);
    cancelled_ = true;
    context = context_;
    delivery = delivery_;
  }
  if (context) (*context)->TryCancel();
  if (delivery) delivery->Cancel();
}

bool PromptCount::cancelled() {
  MutexLock lock(mutex_);
  return cancelled_;
}

PromptCount::PromptCount(const TurnParts& parts, const Prompt& prompt, const Route& route,
                         std::shared_ptr<Backend> llm, FeatureDelivery::Terms terms, Done done)
    : parts_(parts),
      prompt_(prompt),
      route_(route),
      llm_(std::move(llm)),
      terms_(std::move(terms)),
      done_(std::move(done)) {}

void PromptCount::Ask(const std::map<std::string, v1::FeatureKey>& keys) {
  *request_.mutable_model() = route_.model.model();
  FillMessages(prompt_, keys, request_.mutable_messages());
  const auto context = std::make_shared<CallContext>(*llm_);
  (*context)->set_deadline(terms_.deadline);
  (*context)->AddMetadata("x-request-id", terms_.request_id);
  bool cancelled = false;
  {
    MutexLock lock(mutex_);
    cancelled = cancelled_;
    context_ = context;
    delivery_ = nullptr;
  }
  if (cancelled) return done_(absl::CancelledError("cancelled"));
  llm_->generator().async()->CountTokens(
      context->get(), &request_, &response_,
      [self = shared_from_this(), context](const grpc::Status& status) {
        self->OnAnswer(FromGrpc(status));
      });
}

void PromptCount::OnAnswer(const absl::Status& status) {
  if (status.ok()) return done_(response_);
  if (cancelled()) return done_(absl::CancelledError("cancelled"));
  v1::MissingFeatures missing;
  if (!GetDetail(status, &missing)) return done_(llm_->Explain(status));
  for (const v1::FeatureKey& key : missing.keys()) llm_->features().Remove(key);
  if (std::exchange(brought_, true)) {
    return done_(llm_->Explain(OverloadedError(
        "it did not keep the features of the pictures that it was just given", kBringAgain)));
  }
  const auto delivery =
      FeatureDelivery::Create(parts_, prompt_, route_, llm_, terms_,
                              [self = shared_from_this()](auto outcome, const auto&) {
                                if (!outcome.ok()) return self->done_(outcome.status());
                                self->Ask(outcome->keys);
                              });
  bool cancelled = false;
  {
    MutexLock lock(mutex_);
    cancelled = cancelled_;
    context_ = nullptr;
    delivery_ = delivery;
  }
  if (cancelled) delivery->Cancel();
  delivery->Start();
}

void CountUnderWay::Start(std::shared_ptr<PromptCount> count) {
  bool cancelled = false;
  {
    MutexLock lock(mutex_);
    cancelled = cancelled_;
    count_ = count;
  }
  if (cancelled) count->Cancel();
  count->Start();
}

void CountUnderWay::Cancel() {
  std::shared_ptr<PromptCount> count;
  {
    MutexLock lock(mutex_);
    cancelled_ = true;
    count = count_;
  }
  if (count) count->Cancel();
}

bool CountUnderWay::cancelled() const {
  MutexLock lock(mutex_);
  return cancelled_;
}

void CountUnderWay::Clear() {
  std::shared_ptr<PromptCount> count;  // dies without the lock
  MutexLock lock(mutex_);
  count.swap(count_);
}

}  // namespace llava
