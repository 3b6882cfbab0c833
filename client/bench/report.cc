#include "client/bench/report.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace llava::bench {
namespace {

// The figures of both forms.
struct Summary {
  Distribution acknowledged, first_text, token_time, gap, total, age;
  std::map<uint32_t, Distribution> first_text_by_turn;
  uint64_t generated_tokens = 0, prompt_tokens = 0, cached_tokens = 0;
  double tokens_per_second = 0, pieces_per_second = 0, turns_per_second = 0;
};

Summary Summarize(const Samples& samples) {
  Summary summary;
  std::vector<double> acknowledged, first_text, token_time, gaps, total, ages;
  std::map<uint32_t, std::vector<double>> by_turn;
  uint64_t pieces = 0;
  for (const TurnSample& turn : samples.turns) {
    acknowledged.push_back(turn.acknowledged);
    total.push_back(turn.total);
    if (turn.pieces > 0) {  // an answer may be empty
      first_text.push_back(turn.first_text);
      by_turn[turn.turn].push_back(turn.first_text);
    }
    if (turn.generated_tokens > 1 && turn.pieces > 1) {
      token_time.push_back((turn.last_text - turn.first_text) / (turn.generated_tokens - 1));
    }
    gaps.insert(gaps.end(), turn.gaps.begin(), turn.gaps.end());
    ages.insert(ages.end(), turn.ages.begin(), turn.ages.end());
    pieces += turn.pieces;
    summary.generated_tokens += turn.generated_tokens;
    summary.prompt_tokens += turn.prompt_tokens;
    summary.cached_tokens += turn.cached_tokens;
  }
  summary.acknowledged = Describe(std::move(acknowledged));
  summary.first_text = Describe(std::move(first_text));
  summary.token_time = Describe(std::move(token_time));
  summary.gap = Describe(std::move(gaps));
  summary.total = Describe(std::move(total));
  summary.age = Describe(std::move(ages));
  for (auto& [turn, values] : by_turn)
    summary.first_text_by_turn[turn] = Describe(std::move(values));
  if (samples.seconds > 0) {
    summary.turns_per_second = static_cast<double>(samples.window_turns) / samples.seconds;
    summary.pieces_per_second = static_cast<double>(samples.window_pieces) / samples.seconds;
    // Pieces were counted to the end of the measured time, tokens only with whole answers.
    if (pieces > 0) {
      summary.tokens_per_second = summary.pieces_per_second *
                                  static_cast<double>(summary.generated_tokens) /
                                  static_cast<double>(pieces);
    }
  }
  return summary;
}

std::string Loop(const LoadOptions& options) {
  return options.rate > 0 ? absl::StrFormat("open loop, %g sessions a second", options.rate)
                          : absl::StrFormat("closed loop, %d sessions at a time", options.sessions);
}

std::string Row(const std::string& name, const Distribution& values, double unit = 1e3) {
  return absl::StrFormat("%-30s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, unit * values.mean,
                         unit * values.median, unit * values.p90, unit * values.p99,
                         unit * values.max);
}

nlohmann::json ToJson(const Distribution& values) {
  return {{"count", values.count}, {"mean", values.mean}, {"median", values.median},
          {"p90", values.p90},     {"p99", values.p99},   {"max", values.max}};
}

}  // namespace

std::string Table(const Samples& samples, const LoadOptions& options) {
  const Summary summary = Summarize(samples);
  std::string text =
      absl::StrFormat("%s, %d turns each, %.1f s\n", Loop(options), options.turns, samples.seconds);
  absl::StrAppendFormat(&text, "turns      %d done (%.2f/s), %d failed; %d sessions begun",
                        samples.turns.size(), summary.turns_per_second, samples.failed(),
                        samples.sessions);
  if (samples.dropped_sessions > 0) {
    absl::StrAppendFormat(&text, ", %d dropped (more than --sessions at a time)",
                          samples.dropped_sessions);
  }
  absl::StrAppendFormat(&text, "\ntokens     %d generated, %.1f/s; %.1f pieces of text a second\n",
                        summary.generated_tokens, summary.tokens_per_second,
                        summary.pieces_per_second);
  if (summary.prompt_tokens > 0) {
    absl::StrAppendFormat(&text, "prompts    %d tokens, %.1f %% of them cached\n",
                          summary.prompt_tokens,
                          100.0 * static_cast<double>(summary.cached_tokens) /
                              static_cast<double>(summary.prompt_tokens));
  }
  if (!samples.turns.empty()) {
    absl::StrAppendFormat(&text, "%-30s %10s %10s %10s %10s %10s\n", "milliseconds", "mean",
                          "median", "p90", "p99", "max");
    text += Row("acknowledged", summary.acknowledged);
    text += Row("first text (TTFT)", summary.first_text);
    if (summary.first_text_by_turn.size() > 1) {
      for (const auto& [turn, values] : summary.first_text_by_turn) {
        text += Row(absl::StrCat("  of turn ", turn), values);
      }
    }
    text += Row("a token after it (TPOT)", summary.token_time);
    text += Row("between pieces (ITL)", summary.gap);
    text += Row("whole answer (E2EL)", summary.total);
    if (options.stamps) text += Row("from sender to here (us)", summary.age, 1e6);
  }
  for (const auto& [code, failures] : samples.failures) {
    absl::StrAppendFormat(&text, "%s %d times, first: %s\n", code, failures.count,
                          failures.first_message);
  }
  return text;
}

std::string Json(const Samples& samples, const LoadOptions& options) {
  const Summary summary = Summarize(samples);
  nlohmann::json json = {
      {"loop", options.rate > 0 ? "open" : "closed"},
      {"sessions_at_a_time", options.sessions},
      {"turns_per_session", options.turns},
      {"idle_sessions", options.idle_sessions},
      {"pictures", options.pictures.size()},
      {"seconds", samples.seconds},
      {"sessions", samples.sessions},
      {"dropped_sessions", samples.dropped_sessions},
      {"turns", samples.turns.size()},
      {"failed", samples.failed()},
      {"turns_per_second", summary.turns_per_second},
      {"generated_tokens", summary.generated_tokens},
      {"tokens_per_second", summary.tokens_per_second},
      {"pieces_per_second", summary.pieces_per_second},
      {"prompt_tokens", summary.prompt_tokens},
      {"cached_tokens", summary.cached_tokens},
      {"acknowledged_seconds", ToJson(summary.acknowledged)},
      {"time_to_first_text_seconds", ToJson(summary.first_text)},
      {"time_per_token_seconds", ToJson(summary.token_time)},
      {"gap_seconds", ToJson(summary.gap)},
      {"total_seconds", ToJson(summary.total)},
      {"time_to_first_text_by_turn", nlohmann::json::object()},
      {"errors", nlohmann::json::object()},
  };
  if (options.rate > 0) json["rate"] = options.rate;
  if (options.stamps) json["age_seconds"] = ToJson(summary.age);
  for (const auto& [turn, values] : summary.first_text_by_turn) {
    json["time_to_first_text_by_turn"][std::to_string(turn)] = ToJson(values);
  }
  for (const auto& [code, failures] : samples.failures) {
    json["errors"][code] = {{"count", failures.count}, {"first_message", failures.first_message}};
  }
  // Messages may hold anything.
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace llava::bench
