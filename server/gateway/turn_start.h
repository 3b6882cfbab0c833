#pragma once

#include <memory>
#include <optional>
#include <string>

#include "server/gateway/rpc_scope.h"
#include "server/gateway/turn_runner.h"

namespace llava {

// Brings a checked question from the door to its runner, whichever way it came: is the session the
// caller's, was it asked before, do his limits allow it, is there a place? Then a TurnRunner
// answers. Who sends a question again only reads, which no limit refuses. A refusal closes the sink
// like any other end. Lives in its callbacks.
class TurnStart : public std::enable_shared_from_this<TurnStart> {
 public:
  // `request` without caller, id and time of receipt, which are the scope's; `scope` is ended.
  static void Begin(const TurnParts& parts, std::shared_ptr<RpcScope> scope, TurnRequest request,
                    std::unique_ptr<TurnSink> sink);

 private:
  TurnStart(const TurnParts& parts, std::shared_ptr<RpcScope> scope, TurnRequest request,
            std::unique_ptr<TurnSink> sink);

  void OnGone();
  // By the same request: joins its turn, running or ended.
  void FindAskedBefore();
  void AskForPlace();
  void OnPlace(absl::StatusOr<std::shared_ptr<TurnPermit>> permit);
  TurnReader TakeReader();
  void Refuse(const absl::Status& status);

  const TurnParts& parts_;
  const std::shared_ptr<RpcScope> scope_;
  TurnRequest request_;
  std::unique_ptr<TurnSink> sink_;  // until a reader or a runner has it

  Mutex mutex_;
  bool gone_ LLAVA_GUARDED_BY(mutex_) = false;  // the client, before there was a place
  std::optional<uint64_t> ticket_ LLAVA_GUARDED_BY(mutex_);
};

// Follows a turn that is running from a byte on, or replays one that has ended.
void FollowTurn(const TurnParts& parts, const std::string& session_id, const std::string& turn_id,
                const ResumePoint& from, const TurnReader& reader);

// What a question will use at most, about: a token for three bytes of its text, the tokens of its
// pictures, and the longest answer. The turns before it are charged when they are counted.
double EstimateTokens(const TurnRequest& request, const ModelRouter& router);

}  // namespace llava
