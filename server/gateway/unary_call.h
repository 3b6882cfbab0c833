#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "server/gateway/answer_watch.h"
#include "server/gateway/key_lanes.h"
#include "server/gateway/request_memory.h"
#include "server/gateway/rpc_scope.h"
#include "server/gateway/turn_parts.h"
#include "server/runtime/mutex.h"

namespace llava {

// What a unary call holds until gRPC is done with it: gRPC keeps the request that long, which is
// until the client has the answer. Holds itself.
class UnaryReactor : public grpc::ServerUnaryReactor {
 public:
  static std::shared_ptr<UnaryReactor> Create(grpc::CallbackServerContext& context,
                                              const TurnParts& parts, uint64_t free_bytes);

  // Of its request, by one thread; errors of RequestMemory.
  absl::Status HoldMemory(uint64_t bytes, const std::string& key) {
    return memory_->Hold(bytes, key);
  }
  // Among the calls of its key.
  void HoldPlace(KeyLanes::Place place);
  // `on_gone` runs when the client goes, at once if it has. The last one counts.
  void SetOnGone(std::function<void()> on_gone);
  bool gone();  // the client
  // Finish, of an answer of so many bytes.
  void Answer(const grpc::Status& status, size_t bytes);

 private:
  UnaryReactor(grpc::CallbackServerContext& context, const TurnParts& parts, uint64_t free_bytes);

  void OnCancel() override;
  void OnDone() override;

  const std::shared_ptr<AnswerWatch> answer_;
  std::shared_ptr<RequestMemory::Share> memory_;
  std::shared_ptr<UnaryReactor> self_;  // until OnDone

  Mutex mutex_;
  bool gone_ LLAVA_GUARDED_BY(mutex_) = false;
  bool done_ LLAVA_GUARDED_BY(mutex_) = false;
  KeyLanes::Place place_ LLAVA_GUARDED_BY(mutex_);
  std::function<void()> on_gone_ LLAVA_GUARDED_BY(mutex_);
};

// A unary call that may be answered from another thread. Finish exactly once.
class UnaryCall {
 public:
  // Other requests than questions are short: names, texts of a session and its constraint.
  static constexpr uint64_t kMostBytes = 1u << 20;
  static constexpr uint64_t kAnyBytes = std::numeric_limits<uint64_t>::max();

  // `request` and `response` are gRPC's; they live until Finish. kAnyBytes: of a question.
  UnaryCall(std::string method, grpc::CallbackServerContext& context, const TurnParts& parts,
            const google::protobuf::Message& request, const google::protobuf::Message& response,
            uint64_t most_bytes = kMostBytes);

  // As in RpcScope. Also INVALID_ARGUMENT for a request that is too long, which else counts in
  // RequestMemory until the client has its answer, and the errors of that.
  absl::Status Enter(KeyRole least = KeyRole::kUser) const;
  absl::Status Admit() const;

  void Finish(const absl::Status& status) const;
  // Within the method that gRPC calls: `return call.Finished(status);`
  grpc::ServerUnaryReactor* Finished(const absl::Status& status) const {
    Finish(status);
    return reactor_.get();
  }
  RpcScope& scope() const { return *scope_; }
  UnaryReactor* reactor() const { return reactor_.get(); }

 private:
  absl::Status TakeRequest() const;

  std::shared_ptr<RpcScope> scope_;
  std::shared_ptr<UnaryReactor> reactor_;
  const google::protobuf::Message *request_, *response_;
  uint64_t request_bytes_, most_bytes_;
};

}  // namespace llava
