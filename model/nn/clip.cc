#include "model/nn/clip.h"

#include <sstream>
#include <stdexcept>
#include <string>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/layer_norm.h>

#include "model/nn/parameter_reader.h"
#include "model/ops/ops.h"

namespace llava {
namespace {

constexpr const char* kEmbeddings = "vision_model.embeddings.";
constexpr const char* kPreNorm = "vision_model.pre_layrnorm.";  // misspelled by its inventors
constexpr const char* kPostNorm = "vision_model.post_layernorm.";

}  // namespace

ClipTower::ClipTower(const VisionConfig& config, const TensorSource& tensors, at::Device device,
                     at::ScalarType dtype)
    : config_(config), device_(device), dtype_(dtype) {
  const int64_t width = config.hidden_size;
  ParameterReader reader(tensors, device, dtype);
  const std::string embeddings = kEmbeddings;
  class_embedding_ = reader.Read(embeddings + "class_embedding", {width});
  patch_embedding_ =
      reader.Read(embeddings + "patch_embedding.weight",
                  {width, config.num_channels, config.patch_size, config.patch_size});
  position_embedding_ =
      reader.Read(embeddings + "position_embedding.weight", {config.num_patches() + 1, width});
  pre_norm_weight_ = reader.Read(std::string(kPreNorm) + "weight", {width});
  pre_norm_bias_ = reader.Read(std::string(kPreNorm) + "bias", {width});
  const ClipBlockShape shape{width, config.intermediate_size, config.num_heads,
                             config.layer_norm_eps, config.activation};
  for (int64_t i = 0; i < config.num_layers; ++i) {
    blocks_.emplace_back(shape, "vision_model.encoder.layers." + std::to_string(i) + ".", reader);
  }
  if (tensors.tensors().contains(std::string(kPostNorm) + "weight")) {
    post_norm_weight_ = reader.Read(std::string(kPostNorm) + "weight", {width});
    post_norm_bias_ = reader.Read(std::string(kPostNorm) + "bias", {width});
  }
  reader.Finish("vision tower");
}

int64_t BlocksBefore(const VisionConfig& config, at::IntArrayRef pixels, int64_t layer) {
  const int64_t num_blocks = layer < 0 ? config.num_layers + 1 + layer : layer;
  if (num_blocks < 0 || num_blocks > config.num_layers) {
    throw std::invalid_argument("vision tower: hidden state " + std::to_string(layer) +
                                " of a tower with " + std::to_string(config.num_layers) +
                                " blocks; known are 0 to " + std::to_string(config.num_layers) +
                                " and " + std::to_string(-config.num_layers - 1) + " to -1");
  }
  const int64_t channels = config.num_channels, side = config.image_size;
  if (pixels.size() != 4 || pixels.slice(1) != at::IntArrayRef{channels, side, side}) {
    std::ostringstream message;
    message << "vision tower: pixels of shape " << pixels << ", expected [B, " << channels << ", "
            << side << ", " << side << "]";
    throw std::invalid_argument(message.str());
  }
  return num_blocks;
}

at::Tensor ClipTower::Forward(const at::Tensor& pixels, int64_t layer,
                              std::vector<at::Tensor>* hidden_states) const {
  const int64_t num_blocks = BlocksBefore(config_, pixels.sizes(), layer);
  const int64_t channels = config_.num_channels, side = config_.image_size;
  const int64_t batch = pixels.size(0), width = config_.hidden_size;
  const int64_t patch = config_.patch_size, grid = side / patch;

  // A convolution whose stride is its kernel is one matrix product over cut-out patches.
  const at::Tensor patches = pixels.to(at::TensorOptions(device_).dtype(dtype_))
                                 .narrow(2, 0, grid * patch)
                                 .narrow(3, 0, grid * patch)
                                 .reshape({batch, channels, grid, patch, grid, patch})
                                 .permute({0, 2, 4, 1, 3, 5})
                                 .reshape({batch, grid * grid, channels * patch * patch});
  at::Tensor x = ops::Linear(patches, patch_embedding_.flatten(1));
  x = at::cat({class_embedding_.expand({batch, 1, width}), x}, 1) + position_embedding_;

  x = at::layer_norm(x, {width}, pre_norm_weight_, pre_norm_bias_, config_.layer_norm_eps);
  for (int64_t i = 0; i < num_blocks; ++i) {
    if (hidden_states) hidden_states->push_back(x);
    x = blocks_[i].Forward(x);
  }
  return x;
}

at::Tensor ClipTower::Features(const at::Tensor& pixels, const FeatureConfig& features) const {
  const at::Tensor hidden = Forward(pixels, features.select_layer);
  return features.select_feature == SelectFeature::kClsPatch
             ? hidden
             : hidden.narrow(1, 1, hidden.size(1) - 1).contiguous();
}

at::Tensor ClipTower::ClassFeature(const at::Tensor& last_hidden) const {
  if (!post_norm_weight_.defined()) {
    throw std::logic_error("vision tower: the checkpoint has no post-norm");
  }
  return at::layer_norm(last_hidden.select(1, 0), {config_.hidden_size}, post_norm_weight_,
                        post_norm_bias_, config_.layer_norm_eps);
}

void ClipTower::VisitParameters(const ParameterVisitor& visit) {
  const std::string embeddings = kEmbeddings;
  visit(embeddings + "class_embedding", class_embedding_);
  visit(embeddings + "patch_embedding.weight", patch_embedding_);
  visit(embeddings + "position_embedding.weight", position_embedding_);
  visit(std::string(kPreNorm) + "weight", pre_norm_weight_);
  visit(std::string(kPreNorm) + "bias", pre_norm_bias_);
  for (ClipBlock& block : blocks_) block.VisitParameters(visit);
  if (!post_norm_weight_.defined()) return;
  visit(std::string(kPostNorm) + "weight", post_norm_weight_);
  visit(std::string(kPostNorm) + "bias", post_norm_bias_);
}

}  // namespace llava
