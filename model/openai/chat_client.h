#pragma once

// A client of OpenAI-compatible servers: chat completions over HTTP by libcurl.
//
// How a program asks many requests (model/openai/chat_run.h):
//   ChatFlags flags;                          // chat_flags.h: server, limits, budget as flags
//   auto backend = flags.OpenBackend();       // this client, or a replay file (replay.h)
//   ChatJournal journal(folder / "journal.jsonl");   // chat_journal.h: nothing is paid for twice
//   ChatRun run(*backend, journal, flags.RunOptions());
//   run.Run(next, done);                      // next() gives requests, done() takes results
//   journal.Find(HashOf(request));            // later, in any order

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/openai/chat.h"
#include "model/openai/retry_policy.h"

namespace llava {

// Every request becomes a POST to <base_url>/chat/completions without streaming. An attempt that
// fails is repeated after a pause (retry_policy.h tells which do; also: no connection, a timeout,
// an answer that breaks off, that the server broke off, or that is no completion), at most
// `attempts` times, and not where "X-Should-Retry: false" says that it would fail again.
// "Retry-After" is obeyed and holds back all requests, because limits belong to the account; one of
// more than ten minutes is fatal. Results tell errors; nothing is thrown after construction but
// std::bad_alloc and std::runtime_error where libcurl itself fails.
//
// One thread. Redirects are not followed: the key would go along. http_proxy, https_proxy and
// no_proxy are obeyed, as by curl.
class OpenAiChatClient : public ChatBackend {
 public:
  struct Options {
    std::string base_url = "";                   // "https://api.openai.com/v1"
    std::string key = "";                        // sent as bearer; empty: none is
    int concurrency = 8;                         // requests at a time
    double requests_per_minute = 0;              // 0: no limit
    double tokens_per_minute = 0;                // prompt and max_tokens, until the usage is known
    std::chrono::milliseconds timeout{120'000};  // of an attempt
    int attempts = 6;
    Backoff::Options backoff = {};
    uint64_t largest_answer_bytes = 16u << 20;
  };

  // Throws std::invalid_argument for options that cannot work.
  explicit OpenAiChatClient(Options options);
  ~OpenAiChatClient() override;

  bool HasRoom() const override;
  void Submit(const ChatRequest& request) override;
  size_t pending() const override;
  std::vector<ChatResult> Wait(std::chrono::milliseconds most) override;
  void WindDown() override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// "https://host/v1" and "https://host/v1/chat/completions/" are both the latter without its last
// slash. Throws std::invalid_argument for what is no http or https URL or holds a user's name, a
// query or a fragment.
std::string CompletionsUrl(std::string_view base_url);

}  // namespace llava
