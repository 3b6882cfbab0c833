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

Generator::Generator(const Llava& model, std::vector<at::Tensor> image_tokens)
    : model_(&model),
      image_tokens_(std::move(image_tokens)),
      cache_(model.decoder().config(), model.decoder().device(), model.decoder().dtype()) {}

int64_t Generator::Length(std::span<const int32_t> ids) const {
  int64_t length = 0;
  size_t picture = 0;
  for (const int32_t id : ids) {
    const bool known = id == kImageToken && picture < image_tokens_.size();  // else Splice tells
    length += known ? image_tokens_[picture++].size(0) : 1;
  }
  return length;
}

GenerateResult Generator::Reply(std::span<const int32_t> ids, const SamplingOptions& sampling,
                                const StopOptions& stop) {
  c10::InferenceMode guard;
  const LlamaDecoder& decoder = model_->decoder();
  GenerateResult result;
  result.prompt_tokens = Length(ids);
  const int64_t room = decoder.config().max_position_embeddings - result.prompt_tokens;
  if (room < 1 || ids.empty()) {
    throw std::invalid_argument("a prompt of " + std::to_string(result.prompt_tokens) +
                                " tokens; the model takes 1 to " +
                                std::to_string(decoder.config().max_position_embeddings - 1));
  }
  StopOptions limits = stop;
  limits.max_new_tokens = static_cast<uint32_t>(std::min<int64_t>(stop.max_new_tokens, room));
  Answer answer(model_->tokenizer(), std::move(limits));

  // The last token is always computed: its hidden state begins the answer.
  const auto differ =
      std::mismatch(ids.begin(), ids.end() - 1, cached_.begin(), cached_.end()).first;
  const std::span<const int32_t> known(ids.begin(), differ);
  cached_.assign(known.begin(), known.end());
  cache_.Truncate(Length(known));
  const size_t known_pictures =
      std::min<size_t>(std::count(known.begin(), known.end(), kImageToken), image_tokens_.size());
  std::span<const int32_t> next = ids.subspan(known.size());
  at::Tensor embeddings =
      model_->Splice(next, std::span<const at::Tensor>(image_tokens_).subspan(known_pictures));
  while (answer.state() == Answer::State::kRunning) {
    const Segment segment{.tokens = embeddings.size(0), .cache = &cache_};
    const at::Tensor hidden = decoder.Forward(embeddings, {&segment, 1});
    cached_.insert(cached_.end(), next.begin(), next.end());
    const at::Tensor row = decoder.Logits(hidden.narrow(0, hidden.size(0) - 1, 1)).cpu();
    const std::span<const float> logits(row.const_data_ptr<float>(), row.numel());
    const int32_t id = Sample(logits.first(model_->num_known_ids()), sampling, ids, result.ids);
    result.ids.push_back(id);
    result.logprobs.push_back(LogprobsOf(logits, id, 0).chosen.logprob);
    result.text += answer.Push(id);
    next = std::span(result.ids).last(1);
    embeddings = decoder.Embed(at::tensor({static_cast<int64_t>(id)}, at::kLong));
  }
  result.text += answer.Finish();
  result.state = answer.state();
  return result;
}

GenerateResult Generate(const Llava& model, std::span<const int32_t> ids,
                        std::span<const at::Tensor> features, const SamplingOptions& sampling,
                        const StopOptions& stop, std::span<const Resolution> sizes) {
  c10::InferenceMode guard;
  return Generator(model, model.Project(features, sizes)).Reply(ids, sampling, stop);
}

std::vector<std::optional<float>> ScoreTokens(const Llava& model, std::span<const int32_t> ids,
                                              std::span<const at::Tensor> features,
                                              std::span<const Resolution> sizes) {
  c10::InferenceMode guard;
  const std::vector<int64_t> values(ids.begin(), ids.end());
  const std::vector<int64_t> targets = model.Expand(ids, values, kImageToken, sizes);
  const int64_t length = static_cast<int64_t>(targets.size());
  std::vector<std::optional<float>> result(length);
  const Segment segment{.tokens = length};
  const at::Tensor hidden =
      model.decoder().Forward(model.Embed(ids, features, sizes), {&segment, 1});
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
