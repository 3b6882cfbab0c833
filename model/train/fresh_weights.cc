#include "model/train/fresh_weights.h"

#include <algorithm>
#include <cmath>

#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

namespace llava {
namespace {

constexpr double kEmbeddingDeviation = 0.02;  // of class token and positions of a tower
// Of the decoder: deviations in units of in^-0.5, and how much of a matrix is the mimetic part.
constexpr double kMatrix = 0.5, kOutput = 0.4 * kMatrix, kAttention = 0.6 * kMatrix;
constexpr double kQueryKey = 0.75, kValue = 0.6;

}  // namespace

at::Tensor FreshWeights::Normal(at::IntArrayRef shape, double deviation) {
  return at::randn(shape, generator_, at::kFloat) * deviation;
}

void FreshWeights::Linear(const std::string& name, int64_t out, int64_t in, bool bias,
                          NamedTensors& into) {
  const double bound = 1 / std::sqrt(static_cast<double>(in));
  const auto uniform = [&](at::IntArrayRef shape) {
    return at::rand(shape, generator_, at::kFloat) * (2 * bound) - bound;
  };
  into[name + ".weight"] = uniform({out, in});
  if (bias) into[name + ".bias"] = uniform({out});
}

void FreshWeights::Norm(const std::string& name, int64_t width, NamedTensors& into) {
  into[name + ".weight"] = at::ones({width}, at::kFloat);
  into[name + ".bias"] = at::zeros({width}, at::kFloat);
}

at::Tensor FreshWeights::Orthogonal(int64_t rows, int64_t columns) {
  const int64_t longer = std::max(rows, columns);
  const at::Tensor q = std::get<0>(at::linalg_qr(Normal({longer, longer}, 1)));
  return q.narrow(0, 0, rows).narrow(1, 0, columns).contiguous();
}

void FreshWeights::ClipBlock(const std::string& name, int64_t width, int64_t inner,
                             NamedTensors& into) {
  Norm(name + "layer_norm1", width, into);
  Norm(name + "layer_norm2", width, into);
  for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
    Linear(name + "self_attn." + part, width, width, /*bias=*/true, into);
  }
  Linear(name + "mlp.fc1", inner, width, /*bias=*/true, into);
  Linear(name + "mlp.fc2", width, inner, /*bias=*/true, into);
}

NamedTensors FreshWeights::Tower(const VisionConfig& config) {
  const int64_t width = config.hidden_size, patch = config.patch_size;
  const std::string model = "vision_model.", embeddings = model + "embeddings.";
  NamedTensors tensors;
  tensors[embeddings + "class_embedding"] = Normal({width}, kEmbeddingDeviation);
  Linear(embeddings + "patch_embedding", width, config.num_channels * patch * patch,
         /*bias=*/false, tensors);
  at::Tensor& patches = tensors[embeddings + "patch_embedding.weight"];
  patches = patches.view({width, config.num_channels, patch, patch});
  tensors[embeddings + "position_embedding.weight"] =
      Normal({config.num_patches() + 1, width}, kEmbeddingDeviation);
  Norm(model + "pre_layrnorm", width, tensors);  // sic
  for (int64_t i = 0; i < config.num_layers; ++i) {
    ClipBlock(model + "encoder.layers." + std::to_string(i) + ".", width, config.intermediate_size,
              tensors);
  }
  Norm(model + "post_layernorm", width, tensors);
  return tensors;
}

NamedTensors FreshWeights::Decoder(const DecoderConfig& config) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_width = config.num_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  const auto matrix = [&](int64_t out, int64_t in, double size) {
    return Normal({out, in}, size / std::sqrt(static_cast<double>(in)));
  };
  NamedTensors tensors;
  tensors["model.embed_tokens.weight"] = matrix(config.vocab_size, width, kMatrix);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const std::string attention = layer + "self_attn.";
    for (const char* name : {"input_layernorm.weight", "post_attention_layernorm.weight"}) {
      tensors[layer + name] = at::ones({width}, at::kFloat);
    }
    // Query heads that share a key head share its turn.
    const at::Tensor key_turn = Orthogonal(kv_width, width);
    const at::Tensor value_turn = Orthogonal(kv_width, width);
    const auto of_queries = [&](const at::Tensor& turn) {
      return turn.view({config.num_kv_heads, 1, config.head_dim, width})
          .expand({-1, config.num_heads / config.num_kv_heads, -1, -1})
          .reshape({q_width, width});
    };
    tensors[attention + "q_proj.weight"] =
        matrix(q_width, width, kAttention) + kQueryKey * of_queries(key_turn);
    tensors[attention + "k_proj.weight"] =
        matrix(kv_width, width, kAttention) + kQueryKey * key_turn;
    tensors[attention + "v_proj.weight"] =
        matrix(kv_width, width, kAttention) + kValue * value_turn;
    tensors[attention + "o_proj.weight"] =
        matrix(width, q_width, kOutput) + kValue * of_queries(value_turn).t();
    tensors[layer + "mlp.gate_proj.weight"] = matrix(inner, width, kMatrix);
    tensors[layer + "mlp.up_proj.weight"] = matrix(inner, width, kMatrix);
    tensors[layer + "mlp.down_proj.weight"] = matrix(width, inner, kOutput);
  }
  tensors["model.norm.weight"] = at::ones({width}, at::kFloat);
  if (!config.tie_word_embeddings) {
    tensors["lm_head.weight"] = matrix(config.vocab_size, width, kMatrix);
  }
  return tensors;
}

NamedTensors FreshWeights::Projector(const ProjectorConfig& config, double last_layer) {
  NamedTensors tensors;
  for (int64_t i = 0; i < config.depth; ++i) {
    std::string name = "model.mm_projector";
    if (config.depth > 1) (name += '.') += std::to_string(2 * i);
    Linear(name, config.out_width, i == 0 ? config.in_width : config.out_width, /*bias=*/true,
           tensors);
    if (i > 0 && i + 1 == config.depth) tensors[name + ".weight"].mul_(last_layer);
  }
  return tensors;
}

}  // namespace llava
