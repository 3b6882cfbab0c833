#pragma once

// What tests ask about whole prompts.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <ATen/ops/log_softmax.h>
#include <c10/core/InferenceMode.h>

#include "model/llava/llava.h"

namespace llava {

// Once every kImageToken has become its image tokens.
inline int64_t ExpandedLength(const Llava& model, std::span<const int32_t> ids,
                              std::span<const Resolution> sizes = {}) {
  const std::vector<int64_t> values(ids.begin(), ids.end());
  return static_cast<int64_t>(model.Expand(ids, values, kImageToken, sizes).size());
}

// Log-probability of every token of the prompt given what stands before it, one entry per position
// after expansion: nothing for image tokens and for the first token. As in transformers among all
// rows of the table: those that pad it have a share, which they have not in the service.
inline std::vector<std::optional<float>> ScoreTokens(const Llava& model,
                                                     std::span<const int32_t> ids,
                                                     std::span<const at::Tensor> features) {
  const c10::InferenceMode guard;
  const std::vector<int64_t> values(ids.begin(), ids.end());
  const std::vector<int64_t> targets = model.Expand(ids, values, kImageToken);
  const Segment segment{.tokens = static_cast<int64_t>(targets.size())};
  const at::Tensor hidden = model.decoder().Forward(model.Embed(ids, features), {&segment, 1});
  const at::Tensor logprobs = at::log_softmax(model.decoder().Logits(hidden), -1).cpu();
  std::vector<std::optional<float>> scores(targets.size());
  for (size_t i = 1; i < targets.size(); ++i) {
    if (targets[i] == kImageToken) continue;
    scores[i] = logprobs.const_data_ptr<float>()[(i - 1) * logprobs.size(1) + targets[i]];
  }
  return scores;
}

// Of the tokens of an answer to the prompt.
inline std::vector<float> ScoreAnswer(const Llava& model, std::vector<int32_t> prompt,
                                      std::span<const int32_t> answer,
                                      std::span<const at::Tensor> features) {
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  const auto scores = ScoreTokens(model, prompt, features);
  std::vector<float> of_answer;
  for (size_t i = scores.size() - answer.size(); i < scores.size(); ++i) {
    of_answer.push_back(scores[i].value());
  }
  return of_answer;
}

}  // namespace llava
