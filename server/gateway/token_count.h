#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "llava/v1/chat.pb.h"
#include "server/gateway/prompt.h"
#include "server/gateway/prompt_count.h"
#include "server/gateway/turn_parts.h"
#include "server/gateway/unary_call.h"

namespace llava {

// Answers ChatService.CountTokens: the conversation and the next message, as the LLM service counts
// them. Lives in its callbacks.
class TokenCount : public std::enable_shared_from_this<TokenCount> {
 public:
  // `request` was checked and its pictures read; `response` lives until the call is finished.
  static void Start(const TurnParts& parts, UnaryCall call,
                    const v1::ChatServiceCountTokensRequest& request,
                    std::vector<StoredImage> images, std::chrono::system_clock::time_point deadline,
                    v1::ChatServiceCountTokensResponse* response);

 private:
  TokenCount(const TurnParts& parts, UnaryCall call, v1::ChatServiceCountTokensResponse* response)
      : parts_(parts), call_(std::move(call)), response_(response) {}

  void OnConversation(const absl::StatusOr<Conversation>& conversation, const std::string& text,
                      const std::vector<StoredImage>& images);
  void FindVersion();
  void OnVersion(const absl::StatusOr<Route>& route);

  void Cancel();
  void Finish(const absl::Status& status);

  const TurnParts& parts_;
  const UnaryCall call_;
  v1::ChatServiceCountTokensResponse* const response_;
  std::chrono::system_clock::time_point deadline_;
  ModelChoice choice_;
  bool again_ = false;  // chosen anew, because the version had gone
  Prompt prompt_;

  CountUnderWay count_;
};

}  // namespace llava
