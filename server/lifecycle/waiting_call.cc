#include "server/lifecycle/waiting_call.h"

#include <utility>

#include "server/runtime/status.h"

namespace llava {

WaitingCall::WaitingCall(Forget forget, size_t answers, v1::ModelVersionStatus* status)
    : forget_(std::move(forget)), state_(std::make_shared<State>()) {
  MutexLock lock(state_->mutex);
  state_->reactor = this;
  state_->left = answers;
  state_->status = status;
}

ModelManager::OnDone WaitingCall::Answer() const {
  return [state = state_](const absl::StatusOr<v1::ModelVersionStatus>& result) {
    grpc::ServerUnaryReactor* reactor = nullptr;
    absl::Status end;
    {
      MutexLock lock(state->mutex);
      if (state->reactor == nullptr) return;
      state->first_error.Update(result.status());
      if (--state->left > 0) return;
      reactor = std::exchange(state->reactor, nullptr);
      end = state->first_error;
      if (result.ok() && state->status != nullptr) *state->status = *result;
    }
    reactor->Finish(ToGrpc(end));
  };
}

void WaitingCall::OnCancel() {
  for (const uint64_t number : numbers_) forget_(number);
  {
    MutexLock lock(state_->mutex);
    state_->left = 1;
  }
  Answer()(absl::CancelledError("the caller waits no longer; what it asked for goes on"));
}

}  // namespace llava
