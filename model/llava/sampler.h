#pragma once

// Logits to the next token. Pure functions of their arguments; thread-safe. All throw
// std::runtime_error if a logit is NaN or +infinity or none is finite (-infinity forbids a token),
// and std::invalid_argument if there are no logits or an option is out of its range.

#include <cstdint>
#include <span>
#include <vector>

#include "model/llava/philox.h"

namespace llava {

// Defaults are neutral: greedy, no filter, no penalty. Ids outside the vocabulary (kImageToken) are
// passed over by the penalties.
struct SamplingOptions {
  float temperature = 0;         // 0 = greedy
  float top_p = 1;               // (0, 1]
  uint32_t top_k = 0;            // 0 = off
  float min_p = 0;               // [0, 1]
  float repetition_penalty = 1;  // > 0; over prompt and answer, as transformers
  float presence_penalty = 0;    // over the answer, as OpenAI
  float frequency_penalty = 0;
  uint64_t seed = 0;
};

// Penalties, then temperature, top-k, top-p, min-p (the order of transformers' processors); returns
// the probabilities [V] after them, 0 for what was filtered out. With temperature 0: 1 for the
// best. `prompt`: ids for the repetition penalty beside `answer`.
std::vector<float> FilteredProbabilities(std::span<const float> logits,
                                         const SamplingOptions& options,
                                         std::span<const int32_t> prompt,
                                         std::span<const int32_t> answer);

// The next token: greedy, or drawn with the random number of (seed, answer.size()), so a resumed
// answer goes on exactly. Ties go to the lowest id.
int32_t Sample(std::span<const float> logits, const SamplingOptions& options,
               std::span<const int32_t> prompt, std::span<const int32_t> answer);

struct TokenLogprob {
  int32_t id;
  float logprob;
};
// Log-probability of `id` and of the `top` best tokens, before temperature and filters.
struct TokenLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};
TokenLogprobs LogprobsOf(std::span<const float> logits, int32_t id, uint32_t top);

}  // namespace llava
