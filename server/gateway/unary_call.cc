#include "server/gateway/unary_call.h"

#include "server/gateway/request_size.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// Of a request that is no question: names and a few settings pass whatever else is held.
constexpr uint64_t kFreeBytes = 1024;

}  // namespace

std::shared_ptr<UnaryReactor> UnaryReactor::Create(grpc::CallbackServerContext& context,
                                                   const TurnParts& parts, uint64_t free_bytes) {
  std::shared_ptr<UnaryReactor> reactor(new UnaryReactor(context, parts, free_bytes));
  reactor->self_ = reactor;
  return reactor;
}

UnaryReactor::UnaryReactor(grpc::CallbackServerContext& context, const TurnParts& parts,
                           uint64_t free_bytes)
    : answer_(AnswerWatch::Create(context, parts.sends)),
      memory_(parts.memory.NewShare(free_bytes)) {}

void UnaryReactor::HoldPlace(KeyLanes::Place place) {
  MutexLock lock(mutex_);
  place_ = std::move(place);
}

void UnaryReactor::SetOnGone(std::function<void()> on_gone) {
  {
    MutexLock lock(mutex_);
    if (done_) return;
    if (!gone_) {
      on_gone_.swap(on_gone);
      return;
    }
  }
  on_gone();
}

bool UnaryReactor::gone() {
  MutexLock lock(mutex_);
  return gone_;
}

void UnaryReactor::Answer(const grpc::Status& status, size_t bytes) {
  answer_->BeginSend(bytes);
  Finish(status);
}

void UnaryReactor::OnCancel() {
  std::function<void()> on_gone;
  {
    MutexLock lock(mutex_);
    gone_ = true;
    on_gone.swap(on_gone_);
  }
  if (on_gone) on_gone();
}

void UnaryReactor::OnDone() {
  answer_->Done();
  std::function<void()> on_gone;
  KeyLanes::Place place;
  {
    MutexLock lock(mutex_);
    done_ = true;
    on_gone.swap(on_gone_);
    place.swap(place_);
  }
  memory_.reset();
  place.reset();
  self_.reset();
}

UnaryCall::UnaryCall(std::string method, grpc::CallbackServerContext& context,
                     const TurnParts& parts, const google::protobuf::Message& request,
                     const google::protobuf::Message& response, uint64_t most_bytes)
    : scope_(std::make_shared<RpcScope>(std::move(method), context, parts)),
      reactor_(UnaryReactor::Create(
          context, parts, most_bytes == kAnyBytes ? RequestMemory::kFreeBytes : kFreeBytes)),
      request_(&request),
      response_(&response),
      request_bytes_(request.ByteSizeLong()),
      most_bytes_(most_bytes) {}

absl::Status UnaryCall::Enter(KeyRole least) const {
  const absl::Status status = scope_->Enter(least);
  return status.ok() ? TakeRequest() : status;
}

absl::Status UnaryCall::Admit() const {
  const absl::Status status = scope_->Admit();
  return status.ok() ? TakeRequest() : status;
}

absl::Status UnaryCall::TakeRequest() const {
  const absl::Status fits = CheckRequestBytes(*request_, request_bytes_, most_bytes_);
  if (!fits.ok()) return fits;
  return reactor_->HoldMemory(request_bytes_, scope_->caller().name());
}

void UnaryCall::Finish(const absl::Status& status) const {
  const std::shared_ptr<UnaryReactor> reactor = reactor_;
  const size_t bytes = status.ok() ? response_->ByteSizeLong() : 0;
  scope_->End(status);
  reactor->Answer(ToGrpc(status), bytes);
}

}  // namespace llava
