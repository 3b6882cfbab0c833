#pragma once

// What is asked of a chat model and what it answers, in the terms of OpenAI's chat completions.

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

struct ChatRequest {
  struct Message {
    std::string role;  // "system", "user" or "assistant"
    std::string text;
    std::vector<std::string> images = {};  // URLs, "data:" too; sent in front of the text
  };

  std::string id;  // the caller's name for it, in replay files and complaints; not sent
  std::string model;
  std::vector<Message> messages;
  int max_tokens = 1024;                                                   // of the answer
  std::optional<double> temperature = std::nullopt, top_p = std::nullopt;  // none: the server's
  std::optional<int64_t> seed = std::nullopt;
  // Another number asks the same again and gets an answer of its own (several runs of a judge). Not
  // sent.
  int sample = 0;
  // Merged into the body (RFC 7396: null removes a key), for what servers want besides.
  nlohmann::json extra = nlohmann::json::object();
};

struct ChatUsage {
  uint64_t prompt_tokens = 0, completion_tokens = 0;
  uint64_t tokens() const { return prompt_tokens + completion_tokens; }
  ChatUsage& operator+=(const ChatUsage& other) {
    prompt_tokens += other.prompt_tokens;
    completion_tokens += other.completion_tokens;
    return *this;
  }
};

struct ChatReply {
  std::string text;
  std::string finish_reason;  // "stop", "length" (cut off), "content_filter", ...; may be empty
  ChatUsage usage;            // estimated where the server does not tell

  // The server gave up within the answer ("abort", "error"): it is none, asked again it may be.
  bool broken_off() const { return finish_reason == "abort" || finish_reason == "error"; }
};

enum class ChatEnd {
  kAnswered,
  kFailed,   // this request only, and for good or after all attempts
  kFatal,    // no other request will be answered either: a wrong key, no credit left
  kStopped,  // never sent, or waiting to be sent again: ask another time
};

// Exactly one for each request.
struct ChatResult {
  std::string id, hash;  // of the request
  ChatEnd end = ChatEnd::kAnswered;
  std::optional<ChatReply> reply = std::nullopt;  // if answered
  std::string error = "";                         // why it is not
  int attempts = 0;                               // calls made for it; 0: the answer was known
  bool refused = false;                           // failed for good, by a server that is up
};

// The body of the HTTP request. Broken UTF-8 becomes U+FFFD.
std::string BodyOf(const ChatRequest& request);

// SHA-256 of the body and the sample's number, in hex: what journals and replay files know a
// request by. The id is not in it.
std::string HashOf(const ChatRequest& request);

// Tokens of the prompt, by its size, rather too many than too few; pictures as 1000 each.
uint64_t EstimatePromptTokens(const ChatRequest& request);

// Tokens that all answers to the request may have, by what its body says: max_tokens or
// max_completion_tokens, n times. The request's max_tokens where the body has neither.
uint64_t MostAnswerTokens(const ChatRequest& request);

// What a server answered with a status of 200. Throws std::runtime_error if that is no chat
// completion with text (an empty one is), or one that the server broke off.
ChatReply ParseCompletion(std::string_view body, uint64_t estimated_prompt_tokens);

// What a server says of an error in one line, with no control characters: its error.message where
// it has one, else the beginning of the body.
std::string ErrorText(std::string_view body);

// Answers requests, several at a time and in any order. One thread.
class ChatBackend {
 public:
  virtual ~ChatBackend() = default;

  // Whether another request should be submitted now.
  virtual bool HasRoom() const = 0;
  virtual void Submit(const ChatRequest& request) = 0;
  // Submitted requests whose result has not been returned.
  virtual size_t pending() const = 0;
  // Waits for results, at most so long.
  virtual std::vector<ChatResult> Wait(std::chrono::milliseconds most) = 0;
  // Sends nothing more: what is not on the wire comes back from the next Wait as kStopped, what is
  // (and will be paid for) is still waited for. HasRoom is false from now on.
  virtual void WindDown() = 0;
};

}  // namespace llava
