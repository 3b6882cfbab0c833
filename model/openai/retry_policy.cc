#include "model/openai/retry_policy.h"

#include <curl/curl.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>

namespace llava {
namespace {

using std::chrono::milliseconds;

// The "error" of an answer; empty where it has none.
nlohmann::json ErrorIn(std::string_view body) {
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  const bool has = json.is_object() && json.contains("error") && json["error"].is_object();
  return has ? json["error"] : nlohmann::json::object();
}

// OpenAI answers 429 as well when there is nothing left to pay with.
bool CreditHasRunOut(std::string_view body) {
  const auto error = ErrorIn(body);
  for (const char* key : {"code", "type"}) {
    if (const auto found = error.find(key); found != error.end() && found->is_string() &&
                                            found->get<std::string>() == "insufficient_quota") {
      return true;
    }
  }
  return false;
}

// OpenRouter answers 403 as well when its moderation does not let an input through.
bool InputIsFlagged(std::string_view body) {
  const auto error = ErrorIn(body);
  const auto metadata = error.find("metadata");
  return metadata != error.end() && metadata->is_object() &&
         (metadata->contains("flagged_input") || metadata->contains("reasons"));
}

std::optional<double> ParseNumber(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == text.npos) return std::nullopt;
  text = text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(number) ||
      number < 0 || number > 1e9) {
    return std::nullopt;
  }
  return number;
}

}  // namespace

Verdict JudgeStatus(int status, std::string_view body) {
  if (status == 200) return Verdict::kAnswer;
  switch (status) {
    case 429:
      return CreditHasRunOut(body) ? Verdict::kFatal : Verdict::kRetry;
    case 408:
    case 409:
    case 425:
      return Verdict::kRetry;
    case 401:
    case 402:
    case 404:
      return Verdict::kFatal;
    case 403:
      return InputIsFlagged(body) ? Verdict::kFail : Verdict::kFatal;
    default:
      break;
  }
  if (status >= 500) return Verdict::kRetry;
  return status >= 400 ? Verdict::kFail : Verdict::kFatal;
}

std::optional<milliseconds> ParseRetryAfter(const std::string& value,
                                            std::chrono::system_clock::time_point now) {
  if (const auto seconds = ParseNumber(value)) {
    return milliseconds(static_cast<int64_t>(std::ceil(*seconds * 1000)));
  }
  const time_t date = curl_getdate(value.c_str(), nullptr);
  if (date < 0) return std::nullopt;
  const auto wait = std::chrono::system_clock::from_time_t(date) - now;
  return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(wait));
}

std::optional<milliseconds> ParseRetryAfterMs(const std::string& value) {
  const auto number = ParseNumber(value);
  if (!number) return std::nullopt;
  return milliseconds(static_cast<int64_t>(std::ceil(*number)));
}

milliseconds Backoff::After(int number) {
  const double doubled =
      static_cast<double>(options_.first.count()) * std::exp2(std::clamp(number - 1, 0, 60));
  const double most = std::min(doubled, static_cast<double>(options_.most.count()));
  const double share = std::uniform_real_distribution<double>(0.5, 1)(random_);
  return milliseconds(static_cast<int64_t>(most * share));
}

}  // namespace llava
