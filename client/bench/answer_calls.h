#pragma once

#include <grpcpp/client_context.h>

#include <memory>
#include <mutex>
#include <set>

#include "absl/status/status.h"

namespace llava::bench {

// The answers under way, so that a run that is stopped need not wait for them. Thread-safe.
class AnswerCalls {
 public:
  using Call = std::shared_ptr<grpc::ClientContext>;

  // An answer begins. False: not any more.
  bool Enter(Call call);
  // It has ended. True: because of CancelAll.
  bool Leave(const Call& call, const absl::Status& status);
  void CancelAll();

 private:
  std::mutex mutex_;
  std::set<Call> calls_;
  bool cancelled_ = false;
};

}  // namespace llava::bench
