#pragma once

// The server, its limits and the budget at the command line.

#include <CLI/App.hpp>
#include <memory>
#include <string>

#include "model/openai/chat_client.h"
#include "model/openai/chat_run.h"

namespace llava {

// --base-url, --model, --key-env, --replay, --concurrency, --rpm, --tpm, --timeout, --attempts;
// --temperature, --top-p, --max-tokens, --body; --prompt-price, --answer-price, --most-requests,
// --most-tokens, --most-cost.
class ChatFlags {
 public:
  // `defaults`: model, max_tokens and temperature where no flag tells.
  explicit ChatFlags(ChatRequest defaults) : request_(std::move(defaults)) {}

  // `group`: the heading in --help. Must outlive the parsing of `command`.
  void Add(CLI::App& command, const std::string& group);

  // After the parsing. All throw std::invalid_argument for what does not fit together.
  std::unique_ptr<ChatBackend> OpenBackend() const;  // the replay file if one is named
  ChatRun::Options RunOptions() const;
  // A request without id and messages.
  ChatRequest Request() const;

 private:
  ChatRequest request_;
  OpenAiChatClient::Options client_;
  ChatRun::Options run_;
  std::string key_variable_, replay_, body_;
  double timeout_seconds_ = 120;
};

}  // namespace llava
