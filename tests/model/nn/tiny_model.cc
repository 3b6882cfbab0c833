#include "tests/model/nn/tiny_model.h"

#include <cmath>
#include <memory>
#include <utility>

#include <ATen/ATen.h>

namespace llava {
namespace {

class Randomizer {
 public:
  explicit Randomizer(uint64_t seed) : generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {}
  void Matrix(const std::string& name, at::IntArrayRef shape) {
    const double fan_in =
        static_cast<double>(shape.slice(1).empty() ? 1 : c10::multiply_integers(shape.slice(1)));
    tensors_[name] = at::randn(shape, generator_, at::kFloat) / std::sqrt(fan_in);
  }
  void Vector(const std::string& name, int64_t size, double mean) {
    tensors_[name] = at::randn({size}, generator_, at::kFloat) * 0.1 + mean;
  }
  std::map<std::string, at::Tensor> Take() { return std::move(tensors_); }

 private:
  at::Generator generator_;
  std::map<std::string, at::Tensor> tensors_;
};

}  // namespace

std::map<std::string, at::Tensor> RandomTower(const VisionConfig& config, uint64_t seed) {
  Randomizer random(seed);
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const std::string root = "vision_model.";
  random.Vector(root + "embeddings.class_embedding", width, 0);
  random.Matrix(root + "embeddings.patch_embedding.weight",
                {width, config.num_channels, config.patch_size, config.patch_size});
  random.Matrix(root + "embeddings.position_embedding.weight", {config.num_patches() + 1, width});
  const auto norm = [&](const std::string& name) {
    random.Vector(name + ".weight", width, 1);
    random.Vector(name + ".bias", width, 0);
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    random.Matrix(name + ".weight", {out, in});
    random.Vector(name + ".bias", out, 0);
  };
  norm(root + "pre_layrnorm");
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = root + "encoder.layers." + std::to_string(i) + ".";
    norm(layer + "layer_norm1");
    norm(layer + "layer_norm2");
    for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      linear(layer + "self_attn." + part, width, width);
    }
    linear(layer + "mlp.fc1", inner, width);
    linear(layer + "mlp.fc2", width, inner);
  }
  return random.Take();
}

std::map<std::string, at::Tensor> RandomProjector(const ProjectorConfig& config, uint64_t seed) {
  Randomizer random(seed);
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string name =
        "model.mm_projector." + (config.depth == 1 ? "" : std::to_string(2 * i) + ".");
    random.Matrix(name + "weight", {config.out_width, i == 0 ? config.in_width : config.out_width});
    random.Vector(name + "bias", config.out_width, 0);
  }
  return random.Take();
}

std::map<std::string, at::Tensor> RandomDecoder(const DecoderConfig& config, uint64_t seed) {
  Randomizer random(seed);
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_width = config.num_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  random.Matrix("model.embed_tokens.weight", {config.vocab_size, width});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    random.Vector(layer + "input_layernorm.weight", width, 1);
    random.Vector(layer + "post_attention_layernorm.weight", width, 1);
    random.Matrix(layer + "self_attn.q_proj.weight", {q_width, width});
    random.Matrix(layer + "self_attn.k_proj.weight", {kv_width, width});
    random.Matrix(layer + "self_attn.v_proj.weight", {kv_width, width});
    random.Matrix(layer + "self_attn.o_proj.weight", {width, q_width});
    random.Matrix(layer + "mlp.gate_proj.weight", {inner, width});
    random.Matrix(layer + "mlp.up_proj.weight", {inner, width});
    random.Matrix(layer + "mlp.down_proj.weight", {width, inner});
  }
  random.Vector("model.norm.weight", width, 1);
  if (!config.tie_word_embeddings) random.Matrix("lm_head.weight", {config.vocab_size, width});
  return random.Take();
}

VisionConfig TinyTowerConfig() {
  VisionConfig config;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_layers = 3;
  config.num_heads = 2;
  config.image_size = 12;
  config.patch_size = 4;
  return config;
}

DecoderConfig TinyDecoderConfig() {
  DecoderConfig config;
  config.hidden_size = 36;
  config.intermediate_size = 50;
  config.num_layers = 2;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 10;  // not D / H
  config.vocab_size = 53;
  config.max_position_embeddings = 300;
  return config;
}

double MaxDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace llava
