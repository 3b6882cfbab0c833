#include "model/llava/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "model/llava/draw.h"

namespace llava {
namespace {

struct Candidate {
  int32_t id;
  float logit;
  double weight;  // exp((logit - largest) / temperature): the probability before normalisation
};

// Best first; ties go to the lowest id, so that every order is total and the same everywhere.
bool Better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

TokenChoice PlainChoice(const SamplingOptions& options, uint64_t position) {
  return {.temperature = options.temperature,
          .top_p = options.top_p,
          .min_p = options.min_p,
          .top_k = options.top_k,
          .uniform = UniformAt(options.seed, position)};
}

void Check(const SamplingOptions& options) {
  const auto require = [](bool good, const char* name, float value, const char* range) {
    if (!good) {
      throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                  ", must be " + range);
    }
  };
  const auto finite = [](float x) { return std::isfinite(x); };
  require(finite(options.temperature) && options.temperature >= 0, "temperature",
          options.temperature, "0 (greedy) or more");
  require(options.top_p > 0 && options.top_p <= 1, "top_p", options.top_p, "above 0, at most 1");
  require(options.min_p >= 0 && options.min_p <= 1, "min_p", options.min_p, "0 to 1");
  require(finite(options.repetition_penalty) && options.repetition_penalty > 0,
          "repetition_penalty", options.repetition_penalty, "above 0");
  require(finite(options.presence_penalty), "presence_penalty", options.presence_penalty, "finite");
  require(finite(options.frequency_penalty), "frequency_penalty", options.frequency_penalty,
          "finite");
}

// Index of the largest logit, the first of equals.
size_t Best(std::span<const float> logits) {
  if (logits.empty()) throw std::invalid_argument("sampler: no logits");
  size_t best = 0;
  bool broken = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    broken |= !(logits[i] < INFINITY);  // NaN, too
    if (logits[i] > logits[best]) best = i;
  }
  if (broken) throw std::runtime_error("sampler: a logit is NaN or infinite");
  if (logits[best] == -INFINITY) throw std::runtime_error("sampler: every token is forbidden");
  return best;
}

bool HasPenalties(const SamplingOptions& options) {
  return options.repetition_penalty != 1 || options.presence_penalty != 0 ||
         options.frequency_penalty != 0;
}

std::vector<float> Penalized(std::span<const float> logits, const SamplingOptions& options,
                             std::span<const int32_t> prompt, std::span<const int32_t> answer) {
  std::vector<float> result(logits.begin(), logits.end());
  std::vector<bool> seen(result.size());
  for (std::span<const int32_t> ids : {prompt, answer}) {
    for (const int32_t id : ids) {
      if (id < 0 || static_cast<size_t>(id) >= result.size() || seen[id]) continue;
      seen[id] = true;
      result[id] = result[id] < 0 ? result[id] * options.repetition_penalty
                                  : result[id] / options.repetition_penalty;
    }
  }
  if (options.presence_penalty != 0 || options.frequency_penalty != 0) {
    seen.assign(seen.size(), false);
    for (const int32_t id : answer) {
      if (id < 0 || static_cast<size_t>(id) >= result.size()) continue;
      result[id] -= options.frequency_penalty;
      if (!seen[id]) result[id] -= options.presence_penalty;
      seen[id] = true;
    }
  }
  // What overflows is as large as it can be; what was not finite before stays so and is told.
  constexpr float kMost = std::numeric_limits<float>::max();
  for (size_t i = 0; i < result.size(); ++i) {
    if (std::isfinite(logits[i])) result[i] = std::clamp(result[i], -kMost, kMost);
  }
  return result;
}

double TotalWeight(const std::vector<Candidate>& candidates) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

// The worst candidate of the shortest run of best ones whose weights reach `wanted`: a selection
// that follows the weight instead of the rank, in linear time.
Candidate LastOfMass(std::vector<Candidate> candidates, double wanted) {
  auto begin = candidates.begin(), end = candidates.end();
  double before = 0;  // weight of all in front of `begin`; each is better than what follows
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, Better);
    double left = 0;
    for (auto it = begin; it != middle; ++it) left += it->weight;
    if (before + left >= wanted) {
      end = middle;
    } else {
      before += left;
      begin = middle;
    }
  }
  return *begin;
}

// What may be drawn, in the order of ids; never empty.
std::vector<Candidate> Candidates(std::span<const float> logits, const TokenChoice& options) {
  const float top = logits[Best(logits)];
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == -INFINITY) continue;
    const double distance = static_cast<double>(logits[i]) - top;
    candidates.push_back(
        {static_cast<int32_t>(i), logits[i], std::exp(distance / options.temperature)});
  }
  if (options.top_k > 0 && options.top_k < candidates.size()) {
    std::vector<Candidate> ranked = candidates;
    const auto last = ranked.begin() + (options.top_k - 1);
    std::nth_element(ranked.begin(), last, ranked.end(), Better);
    const float least = last->logit;  // its equals stay, as in transformers
    std::erase_if(candidates, [least](const Candidate& c) { return c.logit < least; });
  }
  if (options.top_p < 1) {
    const Candidate last = LastOfMass(candidates, options.top_p * TotalWeight(candidates));
    std::erase_if(candidates, [&last](const Candidate& c) { return Better(last, c); });
  }
  if (options.min_p > 0) {  // relative to the best, whose weight is 1
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < options.min_p; });
  }
  return candidates;
}

}  // namespace

std::vector<float> FilteredProbabilities(std::span<const float> logits,
                                         const SamplingOptions& options,
                                         std::span<const int32_t> prompt,
                                         std::span<const int32_t> answer) {
  Check(options);
  const std::vector<float> penalized = Penalized(logits, options, prompt, answer);
  std::vector<float> probabilities(logits.size());
  if (options.temperature == 0) {
    probabilities[Best(penalized)] = 1;
    return probabilities;
  }
  const std::vector<Candidate> candidates = Candidates(penalized, PlainChoice(options, 0));
  const double total = TotalWeight(candidates);
  for (const Candidate& c : candidates) probabilities[c.id] = static_cast<float>(c.weight / total);
  return probabilities;
}

int32_t Sample(std::span<const float> logits, const SamplingOptions& options,
               std::span<const int32_t> prompt, std::span<const int32_t> answer) {
  Check(options);
  std::vector<float> penalized;
  if (HasPenalties(options)) {
    penalized = Penalized(logits, options, prompt, answer);
    logits = penalized;
  }
  return DrawToken(logits, PlainChoice(options, answer.size()));
}

std::optional<TokenChoice> ChoiceOf(const SamplingOptions& options, uint64_t position) {
  if (HasPenalties(options)) return std::nullopt;
  try {
    Check(options);
  } catch (const std::invalid_argument&) {
    return std::nullopt;
  }
  return PlainChoice(options, position);
}

int32_t DrawToken(std::span<const float> logits, const TokenChoice& choice) {
  if (choice.temperature == 0) return static_cast<int32_t>(Best(logits));
  const std::vector<Candidate> candidates = Candidates(logits, choice);
  double rest = choice.uniform * TotalWeight(candidates);
  for (const Candidate& candidate : candidates) {
    rest -= candidate.weight;
    if (rest < 0) return candidate.id;
  }
  // Rounding ate the last sliver: the best token is never wrong.
  return std::min_element(candidates.begin(), candidates.end(), Better)->id;
}

TokenLogprobs LogprobsOf(std::span<const float> logits, int32_t id, uint32_t top) {
  const float largest = logits[Best(logits)];
  if (id < 0 || static_cast<size_t>(id) >= logits.size()) {
    throw std::invalid_argument("sampler: id " + std::to_string(id) + " of " +
                                std::to_string(logits.size()) + " logits");
  }
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double log_sum = std::log(sum) + largest;
  const auto logprob = [&](float logit) { return static_cast<float>(logit - log_sum); };

  TokenLogprobs result{.chosen = {id, logprob(logits[id])}, .top = {}};
  const size_t wanted = std::min<size_t>(top, logits.size());
  if (wanted == 0) return result;
  std::vector<Candidate> best;  // heap with the worst of the best in front
  best.reserve(wanted + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate candidate{static_cast<int32_t>(i), logits[i], 0};
    if (best.size() == wanted && !Better(candidate, best.front())) continue;
    best.push_back(candidate);
    std::push_heap(best.begin(), best.end(), Better);
    if (best.size() > wanted) {
      std::pop_heap(best.begin(), best.end(), Better);
      best.pop_back();
    }
  }
  std::sort_heap(best.begin(), best.end(), Better);
  for (const Candidate& c : best) result.top.push_back({c.id, logprob(c.logit)});
  return result;
}

}  // namespace llava
