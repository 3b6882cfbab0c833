#include "model/train/contrast_heads.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>

#include "model/nn/parameter_reader.h"
#include "model/ops/ops.h"

namespace llava {
namespace {

constexpr double kEps = 1e-5;
constexpr double kWordDeviation = 0.05, kPositionDeviation = 0.02;

std::string BlockName(int64_t index) { return "text.layers." + std::to_string(index) + "."; }

at::Tensor Unit(const at::Tensor& x) {
  return x / at::linalg_vector_norm(x, 2, /*dim=*/at::IntArrayRef{-1}, /*keepdim=*/true)
                 .clamp_min(1e-6);
}

}  // namespace

PaddedTexts::PaddedTexts(std::span<const std::vector<int32_t>> texts) {
  size_t longest = 1;
  for (const auto& text : texts) longest = std::max(longest, text.size());
  const std::vector<int64_t> shape = {static_cast<int64_t>(texts.size()),
                                      static_cast<int64_t>(longest)};
  ids = at::zeros(shape, at::kLong);
  real = at::zeros(shape, at::kBool);
  for (size_t i = 0; i < texts.size(); ++i) {
    std::copy(texts[i].begin(), texts[i].end(), ids.data_ptr<int64_t>() + i * longest);
    std::fill_n(real.data_ptr<bool>() + i * longest, texts[i].size(), true);
  }
}

NamedTensors ContrastHeads::Fresh(const ContrastShape& shape, FreshWeights& weights) {
  NamedTensors tensors;
  tensors["text.word_embedding.weight"] =
      weights.Normal({shape.vocabulary, shape.text_width}, kWordDeviation);
  tensors["text.position_embedding.weight"] =
      weights.Normal({shape.text_length, shape.text_width}, kPositionDeviation);
  for (int64_t i = 0; i < shape.text_layers; ++i) {
    weights.ClipBlock(BlockName(i), shape.text_width, 4 * shape.text_width, tensors);
  }
  FreshWeights::Norm("text.norm", shape.text_width, tensors);
  weights.Linear("text.projection", shape.shared_width, shape.text_width, false, tensors);
  weights.Linear("picture.projection", shape.shared_width, shape.vision_width, false, tensors);
  FreshWeights::Norm("region.norm", shape.vision_width, tensors);
  weights.Linear("region.projection", shape.shared_width, shape.vision_width, false, tensors);
  FreshWeights::Norm("place.norm", shape.vision_width, tensors);
  weights.Linear("place.projection", 2 * shape.grid, shape.vision_width, true, tensors);
  return tensors;
}

ContrastHeads::ContrastHeads(const ContrastShape& shape, const TensorSource& tensors,
                             at::Device device, at::ScalarType dtype)
    : shape_(shape) {
  const int64_t width = shape.vision_width, shared = shape.shared_width;
  ParameterReader reader(tensors, device, dtype);
  words_ = reader.Read("text.word_embedding.weight", {shape.vocabulary, shape.text_width});
  positions_ = reader.Read("text.position_embedding.weight", {shape.text_length, shape.text_width});
  for (int64_t i = 0; i < shape.text_layers; ++i) {
    blocks_.emplace_back(
        ClipBlockShape{shape.text_width, 4 * shape.text_width, shape.text_heads, kEps},
        BlockName(i), reader);
  }
  text_norm_weight_ = reader.Read("text.norm.weight", {shape.text_width});
  text_norm_bias_ = reader.Read("text.norm.bias", {shape.text_width});
  text_projection_ = reader.Read("text.projection.weight", {shared, shape.text_width});
  picture_projection_ = reader.Read("picture.projection.weight", {shared, width});
  const auto head = [&](const std::string& name, int64_t out) {
    return Head{reader.Read(name + ".norm.weight", {width}),
                reader.Read(name + ".norm.bias", {width}),
                reader.Read(name + ".projection.weight", {out, width})};
  };
  region_ = head("region", shared);
  place_ = head("place", 2 * shape.grid);
  place_bias_ = reader.Read("place.projection.bias", {2 * shape.grid});
  reader.Finish("text tower and heads");
}

at::Tensor ContrastHeads::Texts(const PaddedTexts& texts) const {
  const int64_t batch = texts.ids.size(0), length = texts.ids.size(1);
  if (length > shape_.text_length) {
    throw std::invalid_argument("a text of " + std::to_string(length) +
                                " tokens is longer than the text tower's " +
                                std::to_string(shape_.text_length));
  }
  const at::Tensor ids = texts.ids.to(words_.device()), is_real = texts.real.to(words_.device());
  const at::Tensor seen =
      at::zeros({batch, length}, is_real.options().dtype(at::kFloat))
          .masked_fill(is_real.logical_not(), -std::numeric_limits<float>::infinity());
  const at::Tensor mask = seen.unsqueeze(1).expand({batch, length, length});
  at::Tensor x = at::embedding(words_, ids) + positions_.narrow(0, 0, length);
  for (const ClipBlock& block : blocks_) x = block.Forward(x, mask);
  x = at::layer_norm(x, {shape_.text_width}, text_norm_weight_, text_norm_bias_, kEps);
  const at::Tensor real = is_real.unsqueeze(-1).to(x.scalar_type());
  return Unit(ops::Linear((x * real).sum(1) / real.sum(1), text_projection_));
}

at::Tensor ContrastHeads::Apply(const Head& head, const at::Tensor& features) const {
  return ops::Linear(
      at::layer_norm(features, {shape_.vision_width}, head.norm_weight, head.norm_bias, kEps),
      head.weight);
}

at::Tensor ContrastHeads::Regions(const at::Tensor& features) const {
  return Unit(Apply(region_, features));
}

at::Tensor ContrastHeads::Pictures(const at::Tensor& class_features) const {
  return Unit(ops::Linear(class_features, picture_projection_));
}

at::Tensor ContrastHeads::Places(const at::Tensor& features) const {
  return Apply(place_, features) + place_bias_;
}

void ContrastHeads::VisitParameters(const ParameterVisitor& visit) {
  visit("text.word_embedding.weight", words_);
  visit("text.position_embedding.weight", positions_);
  for (ClipBlock& block : blocks_) block.VisitParameters(visit);
  visit("text.norm.weight", text_norm_weight_);
  visit("text.norm.bias", text_norm_bias_);
  visit("text.projection.weight", text_projection_);
  visit("picture.projection.weight", picture_projection_);
  for (const auto& [name, head] : {std::pair("region", &region_), std::pair("place", &place_)}) {
    visit(std::string(name) + ".norm.weight", head->norm_weight);
    visit(std::string(name) + ".norm.bias", head->norm_bias);
    visit(std::string(name) + ".projection.weight", head->weight);
  }
  visit("place.projection.bias", place_bias_);
}

}  // namespace llava
