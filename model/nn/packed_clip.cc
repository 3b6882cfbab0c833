#include "model/nn/packed_clip.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "model/nn/clip.h"
#include "model/nn/parameter_reader.h"

namespace llava {
namespace {

using ops::cpu::Element;
using ops::cpu::Multiplier;
using ops::cpu::PackedMatrix;
using ops::cpu::RowNorm;
using ops::cpu::Unary;
using ops::cpu::WeightFormat;

// Weights of int8 with one scale: as many as keep tiles busy between two scalings; 128 where rows
// of weights are shorter.
constexpr int64_t kGroup = 512;
constexpr int64_t kShortGroup = 128;

// Between rows of what lies between products, so that those of a tile lie in different sets of the
// caches; a multiple of 32, as products that take rows as they lie want it.
constexpr int64_t kGap = 32;

std::vector<float> Values(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.to(at::kFloat).contiguous();
  const float* values = plain.const_data_ptr<float>();
  return {values, values + plain.numel()};
}

PackedMatrix Pack(const at::Tensor& weight, WeightFormat format, ops::cpu::ThreadPool& pool) {
  const at::Tensor plain = weight.flatten(1).contiguous();
  const int64_t rows = plain.size(0), depth = plain.size(1);
  PackedMatrix::Options options{format, 0, true};
  if (format == WeightFormat::kInt8) options.group = depth >= kGroup ? kGroup : kShortGroup;
  PackedMatrix packed(rows, depth, options);
  packed.Append(pool, ops::cpu::SourceElement::kFloat, plain.const_data_ptr<float>(), rows, depth);
  return packed;
}

// Sum of value(k) for all k below `size`; apart in lanes, so that the compiler makes vectors of it.
template <typename Value>
float SumOf(int64_t size, const Value& value) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] += value(k + i);
  }
  for (int64_t k = whole; k < size; ++k) lanes[k - whole] += value(k);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

// Layer norm of x [size], in its place.
void NormalizeRow(const float* weight, const float* bias, float eps, int64_t size, float* x) {
  const float mean = SumOf(size, [&](int64_t k) { return x[k]; }) / static_cast<float>(size);
  const float squares = SumOf(size, [&](int64_t k) { return (x[k] - mean) * (x[k] - mean); });
  const float scale = 1 / std::sqrt(squares / static_cast<float>(size) + eps);
  for (int64_t k = 0; k < size; ++k) x[k] = (x[k] - mean) * scale * weight[k] + bias[k];
}

Unary FunctionOf(Activation activation) {
  return activation == Activation::kQuickGelu ? Unary::kQuickGelu : Unary::kGelu;
}

}  // namespace

PackedClipWeights::PackedClipWeights(const VisionConfig& config, const TensorSource& tensors,
                                     WeightFormat format, ops::cpu::ThreadPool& pool)
    : config_(config), format_(format) {
  if (format == WeightFormat::kInt4) {
    throw std::invalid_argument("vision tower: there are no weights in 4 bits");
  }
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  // One block at a time in float32, so that little memory is taken beside the result.
  const auto read = [&](const auto& from) {
    ParameterReader reader(tensors, at::kCPU, at::kFloat);
    from(reader);
    reader.Finish("vision tower");
  };
  const auto norm = [](ParameterReader& reader, const std::string& name, int64_t size) {
    const at::Tensor weight = reader.Read(name + "weight", {size});
    const at::Tensor bias = reader.Read(name + "bias", {size});
    const bool there = weight.defined() && bias.defined();
    return there ? Norm{Values(weight), Values(bias)} : Norm{};
  };
  // Whoever is missing is named by Finish, all of a block at once.
  std::vector<std::pair<at::Tensor, at::Tensor>> parts;
  const auto linear = [&](ParameterReader& reader, const std::string& name, int64_t out,
                          int64_t in) {
    at::Tensor weight = reader.Read(name + "weight", {out, in});
    parts.emplace_back(std::move(weight), reader.Read(name + "bias", {out}));
  };
  const auto packed = [&](size_t first, size_t count) {
    std::vector<at::Tensor> weights, biases;
    for (size_t i = first; i < first + count; ++i) {
      weights.push_back(parts[i].first);
      biases.push_back(parts[i].second);
    }
    return Linear{Pack(at::cat(weights), format, pool), Values(at::cat(biases))};
  };

  read([&](ParameterReader& reader) {
    const std::string embeddings = "vision_model.embeddings.";
    const at::Tensor first = reader.Read(embeddings + "class_embedding", {width});
    const at::Tensor patch =
        reader.Read(embeddings + "patch_embedding.weight",
                    {width, config.num_channels, config.patch_size, config.patch_size});
    const at::Tensor position =
        reader.Read(embeddings + "position_embedding.weight", {config.num_patches() + 1, width});
    pre_norm_weight_ = reader.Read("vision_model.pre_layrnorm.weight", {width});
    pre_norm_bias_ = reader.Read("vision_model.pre_layrnorm.bias", {width});
    reader.Finish("vision tower");
    pre_norm_weight_ = pre_norm_weight_.contiguous();
    pre_norm_bias_ = pre_norm_bias_.contiguous();
    patch_embedding_ =
        Pack(patch, format == WeightFormat::kFloat ? format : WeightFormat::kBFloat16, pool);
    position_embedding_ = Values(position);
    const std::vector<float> of_class = Values(first);
    for (int64_t i = 0; i < width; ++i) position_embedding_[i] += of_class[i];
  });
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string name = "vision_model.encoder.layers." + std::to_string(i) + ".";
    Norm norm1, norm2;
    parts.clear();
    read([&](ParameterReader& reader) {
      norm1 = norm(reader, name + "layer_norm1.", width);
      norm2 = norm(reader, name + "layer_norm2.", width);
      for (const char* projection : {"q_proj.", "k_proj.", "v_proj.", "out_proj."}) {
        linear(reader, name + "self_attn." + projection, width, width);
      }
      linear(reader, name + "mlp.fc1.", inner, width);
      linear(reader, name + "mlp.fc2.", width, inner);
    });
    // In the order in which they are read later.
    Linear qkv = packed(0, 3), out = packed(3, 1), fc1 = packed(4, 1), fc2 = packed(5, 1);
    blocks_.push_back({std::move(norm1), std::move(norm2), std::move(qkv), std::move(out),
                       std::move(fc1), std::move(fc2)});
  }
}

uint64_t PackedClipWeights::bytes() const {
  uint64_t bytes =
      static_cast<uint64_t>(patch_embedding_->bytes()) + position_embedding_.size() * sizeof(float);
  for (const Block& block : blocks_) {
    for (const Linear* linear : {&block.qkv, &block.out, &block.fc1, &block.fc2}) {
      bytes += static_cast<uint64_t>(linear->weight.bytes()) + linear->bias.size() * sizeof(float);
    }
    bytes += 4 * block.norm1.weight.size() * sizeof(float);
  }
  return bytes;
}

PackedClipTower::PackedClipTower(std::shared_ptr<const PackedClipWeights> weights,
                                 std::shared_ptr<ops::cpu::ThreadPool> pool,
                                 const ops::cpu::Kernels& kernels)
    : weights_(std::move(weights)),
      config_(weights_->config()),
      inner_(weights_->format() == WeightFormat::kFloat ? Element::kFloat : Element::kBFloat16),
      pool_(std::move(pool)),
      kernels_(kernels),
      multiplier_(*pool_, kernels),
      scratch_(pool_->threads()) {}

void* PackedClipTower::Rows::Get(int64_t rows, int64_t width, Element element) {
  return memory_.Get((rows + ops::cpu::kRowBlock) * (width + kGap) * BytesOf(element));
}

at::Tensor PackedClipTower::Forward(const at::Tensor& pixels, int64_t layer) {
  const int64_t num_blocks = BlocksBefore(config_, pixels.sizes(), layer);
  const int64_t batch = pixels.size(0), tokens = config_.num_patches() + 1;
  const int64_t width = config_.hidden_size;
  at::Tensor x = at::empty({batch, tokens, width}, at::kFloat);
  if (batch == 0) return x;
  Embed(pixels.to(at::kCPU, at::kFloat).contiguous(), x.data_ptr<float>());
  // Not by LibTorch, nor the rounding to bfloat16 below: behind each operation its threads would
  // spin for some ten milliseconds on the cores of our pool.
  const auto* const weight = weights_->pre_norm_weight_.const_data_ptr<float>();
  const auto* const bias = weights_->pre_norm_bias_.const_data_ptr<float>();
  float* const rows = x.data_ptr<float>();
  pool_->Run(batch * tokens, [&](int64_t row, int) {
    NormalizeRow(weight, bias, static_cast<float>(config_.layer_norm_eps), width,
                 rows + row * width);
  });
  for (int64_t i = 0; i < num_blocks; ++i) Run(weights_->blocks_[i], batch, rows);
  return x;
}

at::Tensor PackedClipTower::Features(const at::Tensor& pixels, const FeatureConfig& features) {
  const at::Tensor hidden = Forward(pixels, features.select_layer);
  const int64_t batch = hidden.size(0), tokens = hidden.size(1), width = hidden.size(2);
  const int64_t first = features.select_feature == SelectFeature::kClsPatch ? 0 : 1;
  const int64_t chosen = tokens - first;
  at::Tensor rounded = at::empty({batch, chosen, width}, at::kBFloat16);
  const auto* const from = hidden.const_data_ptr<float>();
  auto* const to = rounded.data_ptr<at::BFloat16>();
  pool_->Run(batch * chosen, [&](int64_t row, int) {
    const int64_t picture = row / chosen, token = first + row % chosen;
    std::copy_n(from + (picture * tokens + token) * width, width, to + row * width);
  });
  return rounded;
}

// A convolution whose stride is its kernel is one product over cut-out patches.
void PackedClipTower::Embed(const at::Tensor& pixels, float* x) {
  const int64_t batch = pixels.size(0), width = config_.hidden_size, side = config_.image_size;
  const int64_t patch = config_.patch_size, grid = side / patch, channels = config_.num_channels;
  const int64_t depth = channels * patch * patch, patches = grid * grid;
  auto* const cut = static_cast<float*>(patches_.Get(patches, depth, Element::kFloat));
  for (int64_t b = 0; b < batch; ++b) {
    const float* const picture = pixels.const_data_ptr<float>() + b * channels * side * side;
    pool_->Run(patches, [&](int64_t index, int) {
      float* to = cut + index * depth;
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t row = 0; row < patch; ++row, to += patch) {
          const int64_t y = index / grid * patch + row;
          std::memcpy(to, picture + (c * side + y) * side + index % grid * patch,
                      static_cast<size_t>(patch) * sizeof(float));
        }
      }
    });
    float* const rows = x + b * (patches + 1) * width;
    std::copy(weights_->position_embedding_.begin(), weights_->position_embedding_.end(), rows);
    multiplier_.Multiply({.data = cut, .rows = patches, .columns = depth, .stride = depth},
                         *weights_->patch_embedding_,
                         {.data = rows + width, .rows = patches, .columns = width, .stride = width},
                         Multiplier::Store::kAdd);
  }
}

void PackedClipTower::Run(const Block& block, int64_t batch, float* x) {
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  const int64_t rows = batch * (config_.num_patches() + 1);
  const auto eps = static_cast<float>(config_.layer_norm_eps);
  void* const qkv = qkv_.Get(rows, 3 * width, inner_);
  void* const seen = seen_.Get(rows, width, inner_);
  void* const hidden = hidden_.Get(rows, inner, inner_);
  // From residuals through a norm to rows between products.
  const auto into = [&](const Norm& norm, const Linear& linear, void* out, Unary function) {
    const RowNorm row_norm{norm.weight.data(), norm.bias.data(), eps};
    const int64_t columns = linear.weight.rows();
    multiplier_.Multiply(
        {.data = x, .rows = rows, .columns = width, .stride = width, .norm = &row_norm},
        linear.weight,
        {.element = inner_,
         .data = out,
         .rows = rows,
         .columns = columns,
         .stride = columns + kGap},
        Multiplier::Store::kOverwrite, {linear.bias.data(), function});
  };
  // And back, added to the residuals.
  const auto back = [&](const void* in, const Linear& linear) {
    const int64_t columns = linear.weight.depth();
    multiplier_.Multiply({.element = inner_,
                          .data = in,
                          .rows = rows,
                          .columns = columns,
                          .stride = columns + kGap,
                          .padded = true},
                         linear.weight,
                         {.data = x, .rows = rows, .columns = width, .stride = width},
                         Multiplier::Store::kAdd, {linear.bias.data(), Unary::kNone});
  };
  into(block.norm1, block.qkv, qkv, Unary::kNone);
  Attend(batch, qkv, seen);
  back(seen, block.out);
  into(block.norm2, block.fc1, hidden, FunctionOf(config_.activation));
  back(hidden, block.fc2);
}

void PackedClipTower::Attend(int64_t batch, const void* qkv, void* seen) {
  const int64_t width = config_.hidden_size, heads = config_.num_heads;
  const int64_t tokens = config_.num_patches() + 1, dim = width / heads;
  // Keys and values of a head are made ready for each task, so tasks are few.
  const int64_t most = (tokens + ops::cpu::kQueryBlock - 1) / ops::cpu::kQueryBlock;
  const int64_t parts = std::clamp<int64_t>(2 * pool_->threads() / (batch * heads), 1, most);
  const int64_t part = (most + parts - 1) / parts * ops::cpu::kQueryBlock;
  pool_->Run(batch * heads * parts, [&](int64_t index, int worker) {
    const int64_t head = index / parts % heads, b = index / parts / heads;
    const int64_t first = index % parts * part;
    if (first >= tokens) return;
    const int64_t in_stride = 3 * width + kGap, out_stride = width + kGap;
    const auto* const from =
        static_cast<const uint8_t*>(qkv) + (b * tokens * in_stride + head * dim) * BytesOf(inner_);
    const int64_t step = width * BytesOf(inner_);
    ops::cpu::FullAttention task;
    task.element = inner_;
    task.tokens = tokens;
    task.head_dim = dim;
    task.first = first;
    task.count = std::min(part, tokens - first);
    task.q = {from, in_stride};
    task.k = {from + step, in_stride};
    task.v = {from + 2 * step, in_stride};
    task.out = {
        static_cast<uint8_t*>(seen) + (b * tokens * out_stride + head * dim) * BytesOf(inner_),
        out_stride};
    const int64_t floats = kernels_.full_attention_scratch(task);
    kernels_.full_attention(task, reinterpret_cast<float*>(scratch_[worker].Get(floats * 4)));
  });
}

}  // namespace llava
