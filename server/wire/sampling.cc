#include "server/wire/sampling.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

constexpr int kMaxStops = 8;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxStopTokens = 16;
constexpr uint32_t kMaxLogprobs = 20;
constexpr int kMaxChoices = 1000;
constexpr size_t kMaxConstraintBytes = 64u << 10;

absl::Status OutOfRange(const char* field, double value, const std::string& range) {
  return absl::InvalidArgumentError(
      absl::StrCat("SamplingParams.", field, " is ", value, ", allowed is ", range));
}

// What it takes to keep and to send it; CompileConstraint looks at the rest.
absl::Status CheckConstraintSize(const v1::SamplingParams& p) {
  if (p.has_constraint() && p.constraint().kind_case() == v1::OutputConstraint::KIND_NOT_SET) {
    // Whoever asks for something is not answered as if it were nothing.
    return absl::InvalidArgumentError(
        "SamplingParams.constraint names no kind, or one that is not known here; for none there is "
        "text");
  }
  if (!HasConstraint(p)) return absl::OkStatus();
  if (p.ignore_eos()) {
    return absl::InvalidArgumentError(
        "SamplingParams.ignore_eos does not go with constraint, which says where an answer ends");
  }
  const int choices = p.constraint().choices().texts_size();
  if (choices > kMaxChoices) {
    return OutOfRange("constraint.choices (number)", choices,
                      absl::StrCat("at most ", kMaxChoices));
  }
  const size_t bytes = p.constraint().ByteSizeLong();
  // With a few bytes around the text itself.
  if (bytes > kMaxConstraintBytes + 16) {
    return OutOfRange("constraint (bytes)", static_cast<double>(bytes),
                      absl::StrCat("at most ", kMaxConstraintBytes));
  }
  return absl::OkStatus();
}

}  // namespace

bool HasConstraint(const v1::SamplingParams& params) {
  const auto kind = params.constraint().kind_case();
  return kind != v1::OutputConstraint::KIND_NOT_SET && kind != v1::OutputConstraint::kText;
}

absl::Status CheckSampling(const v1::SamplingParams& p) {
  // Written so that NaN fails each comparison.
  if (p.has_temperature() && !(p.temperature() >= 0 && p.temperature() <= 2)) {
    return OutOfRange("temperature", p.temperature(), "0 to 2 (0 = greedy)");
  }
  if (p.has_top_p() && !(p.top_p() > 0 && p.top_p() <= 1)) {
    return OutOfRange("top_p", p.top_p(), "above 0 up to 1");
  }
  if (p.has_min_p() && !(p.min_p() >= 0 && p.min_p() <= 1)) {
    return OutOfRange("min_p", p.min_p(), "0 to 1");
  }
  // Logits are divided by it: next to 0 all of them would be as large as a float can be.
  if (p.has_repetition_penalty() &&
      !(p.repetition_penalty() >= 0.01f && p.repetition_penalty() <= 2)) {
    return OutOfRange("repetition_penalty", p.repetition_penalty(), "0.01 to 2");
  }
  if (p.has_presence_penalty() && !(p.presence_penalty() >= -2 && p.presence_penalty() <= 2)) {
    return OutOfRange("presence_penalty", p.presence_penalty(), "-2 to 2");
  }
  if (p.has_frequency_penalty() && !(p.frequency_penalty() >= -2 && p.frequency_penalty() <= 2)) {
    return OutOfRange("frequency_penalty", p.frequency_penalty(), "-2 to 2");
  }
  if (p.has_max_new_tokens() && p.max_new_tokens() < 1) {
    return OutOfRange("max_new_tokens", p.max_new_tokens(), "at least 1");
  }
  if (p.has_logprobs() && p.logprobs() > kMaxLogprobs) {
    return OutOfRange("logprobs", p.logprobs(), absl::StrCat("0 to ", kMaxLogprobs));
  }
  if (p.stop_size() > kMaxStops) {
    return OutOfRange("stop (number of texts)", p.stop_size(), absl::StrCat("at most ", kMaxStops));
  }
  for (const std::string& stop : p.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return OutOfRange("stop (bytes of a text)", static_cast<double>(stop.size()),
                        absl::StrCat("1 to ", kMaxStopBytes));
    }
  }
  if (p.stop_token_ids_size() > kMaxStopTokens) {
    return OutOfRange("stop_token_ids (number)", p.stop_token_ids_size(),
                      absl::StrCat("at most ", kMaxStopTokens));
  }
  return CheckConstraintSize(p);
}

v1::SamplingParams WithDefaults(v1::SamplingParams p, const v1::SamplingParams& defaults) {
  if (!p.has_temperature() && defaults.has_temperature()) p.set_temperature(defaults.temperature());
  if (!p.has_top_p() && defaults.has_top_p()) p.set_top_p(defaults.top_p());
  if (!p.has_top_k() && defaults.has_top_k()) p.set_top_k(defaults.top_k());
  if (!p.has_min_p() && defaults.has_min_p()) p.set_min_p(defaults.min_p());
  if (!p.has_repetition_penalty() && defaults.has_repetition_penalty()) {
    p.set_repetition_penalty(defaults.repetition_penalty());
  }
  if (!p.has_presence_penalty() && defaults.has_presence_penalty()) {
    p.set_presence_penalty(defaults.presence_penalty());
  }
  if (!p.has_frequency_penalty() && defaults.has_frequency_penalty()) {
    p.set_frequency_penalty(defaults.frequency_penalty());
  }
  if (!p.has_seed() && defaults.has_seed()) p.set_seed(defaults.seed());
  if (!p.has_max_new_tokens() && defaults.has_max_new_tokens()) {
    p.set_max_new_tokens(defaults.max_new_tokens());
  }
  if (p.stop().empty()) *p.mutable_stop() = defaults.stop();
  if (p.stop_token_ids().empty()) *p.mutable_stop_token_ids() = defaults.stop_token_ids();
  if (defaults.ignore_eos()) p.set_ignore_eos(true);
  if (!p.has_logprobs() && defaults.has_logprobs()) p.set_logprobs(defaults.logprobs());
  if (!p.has_constraint() && defaults.has_constraint()) {
    *p.mutable_constraint() = defaults.constraint();
  }
  return p;
}

}  // namespace llava
