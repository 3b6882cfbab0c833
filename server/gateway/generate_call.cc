#include "server/gateway/generate_call.h"

#include <utility>

#include "server/runtime/status.h"

namespace llava {

std::shared_ptr<GenerateCall> GenerateCall::Create(Backend& llm, v1::GenerateRequest request,
                                                   std::chrono::system_clock::time_point deadline,
                                                   Callbacks callbacks) {
  std::shared_ptr<GenerateCall> call(
      new GenerateCall(llm, std::move(request), std::move(callbacks)));
  call->context_->set_deadline(deadline);
  call->context_->AddMetadata("x-request-id", call->request_.request_id());
  return call;
}

void GenerateCall::Start() {
  const auto keep = self_ = shared_from_this();
  ++llm_.running;
  llm_.generator().async()->Generate(context_.get(), &request_, this);
  // All later reads start in reactions; the hold covers the start on a foreign thread.
  AddHold();
  StartRead(&response_);
  StartCall();
  RemoveHold();
}

void GenerateCall::OnReadDone(bool ok) {
  if (!ok) return;
  if (auto status = callbacks_.on_event(response_); !status.ok()) {
    refusal_ = std::move(status);
    context_->TryCancel();
  }
  StartRead(&response_);
}

void GenerateCall::OnDone(const grpc::Status& status) {
  const auto keep = std::move(self_);
  const auto callbacks = std::move(callbacks_);
  --llm_.running;
  absl::Status result = FromGrpc(status);
  llm_.Report(refusal_.ok() ? result : refusal_);
  callbacks.on_done(std::move(result));
}

}  // namespace llava
