#include "model/llava/llava.h"

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include "model/text/labels.h"

namespace llava {
namespace {

int64_t CountImages(std::span<const int32_t> ids) {
  return std::count(ids.begin(), ids.end(), kImageToken);
}

}  // namespace

Llava::Llava(const LanguageCheckpoint& checkpoint, at::Device device, at::ScalarType dtype)
    : config_(checkpoint.config),
      tower_rows_(checkpoint.tower_patches +
                  (config_.features.select_feature == SelectFeature::kClsPatch ? 1 : 0)),
      tokenizer_(checkpoint.tokenizer),
      chat_template_(checkpoint.chat_template),
      projector_(LoadProjector(config_.projector, checkpoint.tensors, device, dtype)),
      decoder_(std::make_unique<LlamaDecoder>(config_.decoder, checkpoint.tensors, device, dtype)) {
  num_image_tokens_ = projector_->NumImageTokens(tower_rows_);
}

int64_t Llava::num_known_ids() const {
  return std::min<int64_t>(config_.decoder.vocab_size, tokenizer_->vocab_size());
}

int64_t Llava::ExpandedLength(std::span<const int32_t> ids) const {
  return static_cast<int64_t>(ids.size()) + CountImages(ids) * (num_image_tokens_ - 1);
}

at::Tensor Llava::Embed(std::span<const int32_t> ids, std::span<const at::Tensor> features) const {
  const int64_t num_images = CountImages(ids);
  if (num_images != static_cast<int64_t>(features.size())) {
    throw std::invalid_argument("the prompt has " + std::to_string(num_images) +
                                " image marks, but features of " + std::to_string(features.size()) +
                                " pictures were given");
  }
  std::vector<int64_t> text;
  text.reserve(ids.size());
  for (const int32_t id : ids) {
    if (id == kImageToken) continue;
    if (id < 0 || id >= config_.decoder.vocab_size) {
      throw std::invalid_argument("token id " + std::to_string(id) +
                                  " is not in the model's vocabulary of " +
                                  std::to_string(config_.decoder.vocab_size));
    }
    text.push_back(id);
  }
  const at::Tensor words = decoder_->Embed(at::tensor(text, at::kLong));
  if (num_images == 0) return words;

  std::vector<at::Tensor> pictures;
  pictures.reserve(features.size());
  for (const at::Tensor& picture : features) {
    if (picture.dim() != 2 || picture.size(0) != tower_rows_ ||
        picture.size(1) != config_.projector.in_width) {
      std::ostringstream message;
      message << "features of shape " << picture.sizes() << ", expected [" << tower_rows_ << ", "
              << config_.projector.in_width << "]";
      throw std::invalid_argument(message.str());
    }
    pictures.push_back(picture.to(at::TensorOptions(decoder_->device()).dtype(decoder_->dtype())));
  }
  const at::Tensor projected = projector_->Forward(at::stack(pictures));  // [pictures, N, D]

  std::vector<at::Tensor> parts;
  parts.reserve(2 * num_images + 1);
  int64_t begin = 0, end = 0, image = 0;  // stretch of words not yet placed
  const auto place_words = [&] {
    if (end > begin) parts.push_back(words.narrow(0, begin, end - begin));
    begin = end;
  };
  for (const int32_t id : ids) {
    if (id != kImageToken) {
      ++end;
      continue;
    }
    place_words();
    parts.push_back(projected.select(0, image++));
  }
  place_words();
  return at::cat(parts);
}

std::vector<int64_t> Llava::Expand(std::span<const int32_t> ids, std::span<const int64_t> values,
                                   int64_t fill) const {
  if (ids.size() != values.size()) {
    throw std::invalid_argument(std::to_string(values.size()) + " labels for " +
                                std::to_string(ids.size()) + " token ids");
  }
  std::vector<int64_t> result;
  result.reserve(ExpandedLength(ids));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] == kImageToken) {
      result.insert(result.end(), num_image_tokens_, fill);
    } else {
      result.push_back(values[i]);
    }
  }
  return result;
}

void Llava::VisitParameters(const ParameterVisitor& visit) {
  projector_->VisitParameters(visit);
  decoder_->VisitParameters(visit);
}

at::Tensor Loss(const Llava& model, std::span<const LabelledSample> batch) {
  std::vector<at::Tensor> embeddings;
  std::vector<Segment> segments;
  std::vector<int64_t> rows, targets;  // hidden state that predicts, token to predict
  int64_t begin = 0;
  for (const LabelledSample& sample : batch) {
    const std::vector<int64_t> labels = model.Expand(sample.input_ids, sample.labels, kIgnoreLabel);
    const int64_t length = static_cast<int64_t>(labels.size());
    for (int64_t i = 1; i < length; ++i) {
      if (labels[i] == kIgnoreLabel) continue;
      if (labels[i] < 0 || labels[i] >= model.config().decoder.vocab_size) {
        throw std::invalid_argument("label " + std::to_string(labels[i]) +
                                    " is not in the model's vocabulary of " +
                                    std::to_string(model.config().decoder.vocab_size));
      }
      rows.push_back(begin + i - 1);
      targets.push_back(labels[i]);
    }
    embeddings.push_back(model.Embed(sample.input_ids, sample.features));
    segments.push_back({.tokens = length});
    begin += length;
  }
  if (targets.empty()) {
    throw std::invalid_argument("none of the " + std::to_string(begin) + " tokens of the " +
                                std::to_string(batch.size()) +
                                " samples in the batch has a label: there is nothing to learn");
  }
  const at::Device device = model.decoder().device();
  const at::Tensor hidden = model.decoder().Forward(at::cat(embeddings), segments);
  // Only labelled rows go through the head: most of a prompt has none.
  const at::Tensor logits =
      model.decoder().Logits(hidden.index_select(0, at::tensor(rows, at::kLong).to(device)));
  return at::cross_entropy_loss(logits, at::tensor(targets, at::kLong).to(device));
}

}  // namespace llava
