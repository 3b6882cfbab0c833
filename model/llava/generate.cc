#include "model/llava/generate.h"

#include <algorithm>
#include <stdexcept>

#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

namespace llava {

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

}  // namespace llava
