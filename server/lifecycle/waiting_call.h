#pragma once

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "server/lifecycle/model_manager.h"
#include "server/runtime/mutex.h"

namespace llava {

// A call that waits for versions. It ends once: when the manager has given all answers, with the
// first error among them, or when the caller gives up or its deadline passes.
class WaitingCall : public grpc::ServerUnaryReactor {
 public:
  using Forget = std::function<bool(uint64_t)>;  // ModelManager::Forget

  // `status`: gRPC's, filled in by the last answer; null: nobody wants to see it.
  explicit WaitingCall(Forget forget, size_t answers = 1, v1::ModelVersionStatus* status = nullptr);

  // For the manager, which may come when this call is gone.
  ModelManager::OnDone Answer() const;
  // The number of what was asked for. Before the call is given to gRPC.
  void WaitFor(uint64_t number) { numbers_.push_back(number); }

  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  struct State {
    Mutex mutex;
    grpc::ServerUnaryReactor* reactor LLAVA_GUARDED_BY(mutex) = nullptr;  // null: it has ended
    size_t left LLAVA_GUARDED_BY(mutex) = 0;
    absl::Status first_error LLAVA_GUARDED_BY(mutex);
    v1::ModelVersionStatus* status = nullptr;  // until it has ended
  };

  const Forget forget_;
  const std::shared_ptr<State> state_;
  std::vector<uint64_t> numbers_;
};

}  // namespace llava
