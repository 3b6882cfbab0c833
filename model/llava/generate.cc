#include "model/llava/generate.h"

#include <algorithm>
#include <stdexcept>

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

namespace llava {
namespace {

// Rows whose logits are in memory at a time while a prompt is scored.
constexpr int64_t kScoredRows = 256;

}  // namespace

GenerateResult Generate(const Llava& model, std::span<const int32_t> ids,
                        std::span<const at::Tensor> features, const SamplingOptions& sampling,
                        const StopOptions& stop) {
  c10::InferenceMode guard;
  const LlamaDecoder& decoder = model.decoder();
  GenerateResult result;
  result.prompt_tokens = model.ExpandedLength(ids);
  const int64_t room = decoder.config().max_position_embeddings - result.prompt_tokens;
  if (room < 1 || ids.empty()) {
    throw std::invalid_argument("a prompt of " + std::to_string(result.prompt_tokens) +
                                " tokens; the model takes 1 to " +
                                std::to_string(decoder.config().max_position_embeddings - 1));
  }
  StopOptions limits = stop;
  limits.max_new_tokens = static_cast<uint32_t>(std::min<int64_t>(stop.max_new_tokens, room));
  Answer answer(model.tokenizer(), std::move(limits));
  KvCache cache(decoder.config(), decoder.device(), decoder.dtype());
  at::Tensor embeddings = model.Embed(ids, features);
  while (answer.state() == Answer::State::kRunning) {
    const Segment segment{.tokens = embeddings.size(0), .cache = &cache};
    const at::Tensor hidden = decoder.Forward(embeddings, {&segment, 1});
    const at::Tensor row = decoder.Logits(hidden.narrow(0, hidden.size(0) - 1, 1)).cpu();
    const std::span<const float> logits(row.const_data_ptr<float>(), row.numel());
    const int32_t id = Sample(logits.first(model.num_known_ids()), sampling, ids, result.ids);
    result.ids.push_back(id);
    result.logprobs.push_back(LogprobsOf(logits, id, 0).chosen.logprob);
    result.text += answer.Push(id);
    embeddings = decoder.Embed(at::tensor({static_cast<int64_t>(id)}, at::kLong));
  }
  result.text += answer.Finish();
  result.state = answer.state();
  return result;
}

std::vector<std::optional<float>> ScoreTokens(const Llava& model, std::span<const int32_t> ids,
                                              std::span<const at::Tensor> features) {
  c10::InferenceMode guard;
  const std::vector<int64_t> values(ids.begin(), ids.end());
  const std::vector<int64_t> targets = model.Expand(ids, values, kImageToken);
  const int64_t length = static_cast<int64_t>(targets.size());
  std::vector<std::optional<float>> result(length);
  const Segment segment{.tokens = length};
  const at::Tensor hidden = model.decoder().Forward(model.Embed(ids, features), {&segment, 1});
  for (int64_t begin = 0; begin + 1 < length; begin += kScoredRows) {
    const int64_t rows = std::min(kScoredRows, length - 1 - begin);
    const at::Tensor logprobs =
        at::log_softmax(model.decoder().Logits(hidden.narrow(0, begin, rows)), -1).cpu();
    const float* values_of_row = logprobs.const_data_ptr<float>();
    for (int64_t i = 0; i < rows; ++i, values_of_row += logprobs.size(1)) {
      const int64_t target = targets[begin + i + 1];
      if (target != kImageToken) result[begin + i + 1] = values_of_row[target];
    }
  }
  return result;
}

}  // namespace llava
