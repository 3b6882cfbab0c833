#pragma once

// Answers from a file instead of a server.

#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/openai/chat.h"

namespace llava {

// Knows the answers of a file of JSON lines: {"request": hash or "id": id, "text", and where known
// "finish_reason", "prompt_tokens", "completion_tokens"}. A journal is such a file. Answers that
// the server broke off are none. The hash of a request is looked for first, then its id; without
// either the request fails. In memory; one thread.
class ReplayBackend : public ChatBackend {
 public:
  // Throws std::invalid_argument naming the file, and the line if one is broken or tells an answer
  // that another line tells differently.
  explicit ReplayBackend(std::filesystem::path path);

  bool HasRoom() const override { return !winding_down_ && results_.size() < 64; }
  void Submit(const ChatRequest& request) override;
  size_t pending() const override { return results_.size(); }
  std::vector<ChatResult> Wait(std::chrono::milliseconds most) override;
  void WindDown() override { winding_down_ = true; }

 private:
  std::filesystem::path path_;
  std::vector<ChatReply> replies_;
  std::unordered_map<std::string, size_t> by_hash_, by_id_;  // numbers of replies
  std::vector<ChatResult> results_;
  bool winding_down_ = false;
};

}  // namespace llava
