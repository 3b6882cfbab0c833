#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "llava/v1/chat.pb.h"
#include "server/gateway/prompt.h"
#include "server/gateway/prompt_count.h"
#include "server/gateway/rpc_scope.h"
#include "server/gateway/turn_parts.h"

namespace llava {

// Answers ChatService.CountTokens: the conversation and the next message, as the LLM service counts
// them. Lives in its callbacks.
class TokenCount : public std::enable_shared_from_this<TokenCount> {
 public:
  // `request` was checked and its pictures read; `response` lives until the call is finished.
  // `memory` is what they take.
  static void Start(const TurnParts& parts, UnaryCall call,
                    std::shared_ptr<RequestMemory::Share> memory,
                    const v1::ChatServiceCountTokensRequest& request,
                    std::vector<StoredImage> images, std::chrono::system_clock::time_point deadline,
                    v1::ChatServiceCountTokensResponse* response);

 private:
  TokenCount(const TurnParts& parts, UnaryCall call, std::shared_ptr<RequestMemory::Share> memory,
             v1::ChatServiceCountTokensResponse* response)
      : parts_(parts), call_(std::move(call)), memory_(std::move(memory)), response_(response) {}

  void OnConversation(const absl::StatusOr<Conversation>& conversation, const std::string& text,
                      const std::vector<StoredImage>& images);
  void FindVersion();
  void OnVersion(const absl::StatusOr<Route>& route);

  void Cancel();
  void Finish(const absl::Status& status);

  const TurnParts& parts_;
  const UnaryCall call_;
  const std::shared_ptr<RequestMemory::Share> memory_;
  v1::ChatServiceCountTokensResponse* const response_;
  std::chrono::system_clock::time_point deadline_;
  ModelChoice choice_;
  bool again_ = false;  // chosen anew, because the version had gone
  Prompt prompt_;

  CountUnderWay count_;
};

}  // namespace llava
