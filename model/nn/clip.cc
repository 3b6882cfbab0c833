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

ClipTower::ClipTower(const VisionConfig& config, const TensorSource& tensors, at::Device device,
                     at::ScalarType dtype)
    : config_(config), device_(device), dtype_(dtype) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  ParameterReader reader(tensors, device, dtype);
  const std::string embeddings = "vision_model.embeddings.";
  class_embedding_ = reader.Read(embeddings + "class_embedding", {width});
  patch_embedding_ =
      reader.Read(embeddings + "patch_embedding.weight",
                  {width, config.num_channels, config.patch_size, config.patch_size});
  position_embedding_ =
      reader.Read(embeddings + "position_embedding.weight", {config.num_patches() + 1, width});
  pre_norm_weight_ = reader.Read("vision_model.pre_layrnorm.weight", {width});  // sic
  pre_norm_bias_ = reader.Read("vision_model.pre_layrnorm.bias", {width});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string name = "vision_model.encoder.layers." + std::to_string(i) + ".";
    const auto joined = [&](const std::string& part, at::IntArrayRef shape) {
      const at::Tensor q = reader.Read(name + "self_attn.q_proj." + part, shape);
      const at::Tensor k = reader.Read(name + "self_attn.k_proj." + part, shape);
      const at::Tensor v = reader.Read(name + "self_attn.v_proj." + part, shape);
      return q.defined() && k.defined() && v.defined() ? at::cat({q, k, v}) : at::Tensor();
    };
    Block block;
    block.norm1_weight = reader.Read(name + "layer_norm1.weight", {width});
    block.norm1_bias = reader.Read(name + "layer_norm1.bias", {width});
    block.norm2_weight = reader.Read(name + "layer_norm2.weight", {width});
    block.norm2_bias = reader.Read(name + "layer_norm2.bias", {width});
    block.qkv_weight = joined("weight", {width, width});
    block.qkv_bias = joined("bias", {width});
    block.out_weight = reader.Read(name + "self_attn.out_proj.weight", {width, width});
    block.out_bias = reader.Read(name + "self_attn.out_proj.bias", {width});
    block.fc1_weight = reader.Read(name + "mlp.fc1.weight", {inner, width});
    block.fc1_bias = reader.Read(name + "mlp.fc1.bias", {inner});
    block.fc2_weight = reader.Read(name + "mlp.fc2.weight", {width, inner});
    block.fc2_bias = reader.Read(name + "mlp.fc2.bias", {width});
    blocks_.push_back(std::move(block));
  }
  reader.Finish("vision tower");
}

at::Tensor ClipTower::Forward(const at::Tensor& pixels, int64_t layer) const {
  const int64_t num_blocks = layer < 0 ? config_.num_layers + 1 + layer : layer;
  if (num_blocks < 0 || num_blocks > config_.num_layers) {
    throw std::invalid_argument("vision tower: hidden state " + std::to_string(layer) +
                                " of a tower with " + std::to_string(config_.num_layers) +
                                " blocks; known are 0 to " + std::to_string(config_.num_layers) +
                                " and " + std::to_string(-config_.num_layers - 1) + " to -1");
  }
  const int64_t channels = config_.num_channels, side = config_.image_size;
  if (pixels.dim() != 4 || pixels.size(1) != channels || pixels.size(2) != side ||
      pixels.size(3) != side) {
    std::ostringstream message;
    message << "vision tower: pixels of shape " << pixels.sizes() << ", expected [B, " << channels
            << ", " << side << ", " << side << "]";
    throw std::invalid_argument(message.str());
  }
  const int64_t batch = pixels.size(0), width = config_.hidden_size, heads = config_.num_heads;
  const int64_t patch = config_.patch_size, grid = side / patch, head_dim = width / heads;

  // A convolution whose stride is its kernel is one matrix product over cut-out patches.
  const at::Tensor patches = pixels.to(at::TensorOptions(device_).dtype(dtype_))
                                 .narrow(2, 0, grid * patch)
                                 .narrow(3, 0, grid * patch)
                                 .reshape({batch, channels, grid, patch, grid, patch})
                                 .permute({0, 2, 4, 1, 3, 5})
                                 .reshape({batch, grid * grid, channels * patch * patch});
  at::Tensor x = ops::Linear(patches, patch_embedding_.flatten(1));
  x = at::cat({class_embedding_.expand({batch, 1, width}), x}, 1) + position_embedding_;

  const auto norm = [&](const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
    return at::layer_norm(input, {width}, weight, bias, config_.layer_norm_eps);
  };
  x = norm(x, pre_norm_weight_, pre_norm_bias_);
  for (int64_t i = 0; i < num_blocks; ++i) {
    const Block& block = blocks_[i];
    const at::Tensor qkv =
        ops::Linear(norm(x, block.norm1_weight, block.norm1_bias), block.qkv_weight, block.qkv_bias)
            .view({batch, -1, 3, heads, head_dim});
    const at::Tensor attention =
        ops::Attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), /*causal=*/false);
    x = x + ops::Linear(attention.flatten(2), block.out_weight, block.out_bias);
    const at::Tensor inner = ops::Linear(norm(x, block.norm2_weight, block.norm2_bias),
                                         block.fc1_weight, block.fc1_bias);
    x = x + ops::Linear(ops::Activate(inner, config_.activation), block.fc2_weight, block.fc2_bias);
  }
  return x;
}

at::Tensor ClipTower::Features(const at::Tensor& pixels, const FeatureConfig& features) const {
  const at::Tensor hidden = Forward(pixels, features.select_layer);
  return features.select_feature == SelectFeature::kClsPatch
             ? hidden
             : hidden.narrow(1, 1, hidden.size(1) - 1).contiguous();
}

}  // namespace llava
