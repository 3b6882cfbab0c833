#include "model/openai/chat_flags.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <stdexcept>

#include "model/openai/replay.h"

namespace llava {
namespace {

constexpr char kUsualKeyVariable[] = "OPENAI_API_KEY";

std::string TemperatureHelp(const std::optional<double>& usual) {
  if (!usual) return "Of sampling (default: the server's)";
  char number[32];
  std::snprintf(number, sizeof(number), "%g", *usual);
  return std::string("Of sampling (default: ") + number +
         "; for a server that takes none: --body '{\"temperature\": null}')";
}

}  // namespace

void ChatFlags::Add(CLI::App& command, const std::string& group) {
  const auto add = [&](const std::string& name, auto& value, const std::string& text) {
    return command.add_option(name, value, text)->group(group);
  };
  const auto not_negative = CLI::Range(0.0, 1e15);
  CLI::Option* replay =
      add("--replay", replay_, "File of answers (JSON lines, as a journal) instead of a server");
  // A file is not waited for.
  const auto of_server = [&](const std::string& name, auto& value, const std::string& text) {
    return add(name, value, text)->excludes(replay);
  };
  of_server("--base-url", client_.base_url,
            "OpenAI-compatible server, for example https://api.openai.com/v1 or "
            "http://localhost:8000/v1");
  add("--model", request_.model, "Its name at the server")->capture_default_str();
  of_server("--key-env", key_variable_,
            std::string("Environment variable with the key (default: ") + kUsualKeyVariable +
                ", if it is set)");
  of_server("--concurrency", client_.concurrency, "Requests at a time")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  of_server("--rpm", client_.requests_per_minute, "Requests per minute at most; 0: no limit")
      ->check(not_negative);
  of_server("--tpm", client_.tokens_per_minute, "Tokens per minute at most; 0: no limit")
      ->check(not_negative);
  of_server("--timeout", timeout_seconds_, "Seconds that an attempt may take")
      ->check(CLI::Range(0.001, 86400.0))
      ->capture_default_str();
  of_server("--attempts", client_.attempts, "Attempts of a request that may do better later")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  add("--temperature", request_.temperature, TemperatureHelp(request_.temperature))
      ->check(CLI::Range(0.0, 5.0));
  add("--top-p", request_.top_p, "Of sampling (default: the server's)")
      ->check(CLI::Range(0.0, 1.0));
  add("--max-tokens", request_.max_tokens, "Of an answer")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  add("--body", body_,
      "JSON object merged into every request: {\"max_tokens\": null, \"max_completion_tokens\": "
      "900}");
  add("--prompt-price", run_.prices.prompt, "Of a million tokens that are sent")
      ->check(not_negative);
  add("--answer-price", run_.prices.completion, "Of a million tokens that are answered")
      ->check(not_negative);
  add("--most-requests", run_.most_requests, "Stop at so many answers, earlier runs included");
  add("--most-tokens", run_.most_tokens, "Stop at so many tokens, earlier runs included");
  add("--most-cost", run_.most_cost, "Stop at this cost, earlier runs included")
      ->check(not_negative);
}

std::unique_ptr<ChatBackend> ChatFlags::OpenBackend() const {
  if (!replay_.empty()) return std::make_unique<ReplayBackend>(replay_);
  if (client_.base_url.empty()) throw std::invalid_argument("name a server with --base-url");
  if (request_.model.empty()) throw std::invalid_argument("name the server's model with --model");
  OpenAiChatClient::Options options = client_;
  options.timeout = std::chrono::milliseconds(static_cast<int64_t>(timeout_seconds_ * 1000));
  const std::string variable = key_variable_.empty() ? kUsualKeyVariable : key_variable_;
  if (const char* key = std::getenv(variable.c_str()); key && *key) {
    options.key = key;
  } else if (!key_variable_.empty()) {
    throw std::invalid_argument("the environment has no key in " + variable);
  }
  return std::make_unique<OpenAiChatClient>(std::move(options));
}

ChatRun::Options ChatFlags::RunOptions() const {
  if (run_.most_cost > 0 && run_.prices.prompt <= 0 && run_.prices.completion <= 0) {
    throw std::invalid_argument("--most-cost needs --prompt-price and --answer-price");
  }
  ChatRun::Options options = run_;
  if (!replay_.empty()) options.most_failures_in_a_row = 0;  // no server that could be down
  return options;
}

ChatRequest ChatFlags::Request() const {
  ChatRequest request = request_;
  if (!body_.empty()) {
    request.extra = nlohmann::json::parse(body_, nullptr, /*allow_exceptions=*/false);
    if (!request.extra.is_object()) {
      throw std::invalid_argument("--body must be a JSON object, found " + body_);
    }
  }
  return request;
}

}  // namespace llava
