#include "model/nn/clip_block.h"

#include <array>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/layer_norm.h>

#include "model/ops/ops.h"

namespace llava {
namespace {

constexpr std::array<const char*, 3> kJoined = {"q_proj.", "k_proj.", "v_proj."};

}  // namespace

ClipBlock::ClipBlock(const ClipBlockShape& shape, std::string name, ParameterReader& reader)
    : shape_(shape), name_(std::move(name)) {
  const int64_t width = shape.width, inner = shape.inner;
  const std::string attention = name_ + "self_attn.";
  const auto joined = [&](const std::string& part, at::IntArrayRef size) {
    std::vector<at::Tensor> parts;
    bool whole = true;
    for (const char* projection : kJoined) {
      parts.push_back(reader.Read(attention + projection + part, size));
      whole &= parts.back().defined();
    }
    return whole ? at::cat(parts) : at::Tensor();
  };
  norm1_weight_ = reader.Read(name_ + "layer_norm1.weight", {width});
  norm1_bias_ = reader.Read(name_ + "layer_norm1.bias", {width});
  norm2_weight_ = reader.Read(name_ + "layer_norm2.weight", {width});
  norm2_bias_ = reader.Read(name_ + "layer_norm2.bias", {width});
  qkv_weight_ = joined("weight", {width, width});
  qkv_bias_ = joined("bias", {width});
  out_weight_ = reader.Read(attention + "out_proj.weight", {width, width});
  out_bias_ = reader.Read(attention + "out_proj.bias", {width});
  fc1_weight_ = reader.Read(name_ + "mlp.fc1.weight", {inner, width});
  fc1_bias_ = reader.Read(name_ + "mlp.fc1.bias", {inner});
  fc2_weight_ = reader.Read(name_ + "mlp.fc2.weight", {width, inner});
  fc2_bias_ = reader.Read(name_ + "mlp.fc2.bias", {width});
}

at::Tensor ClipBlock::Forward(const at::Tensor& x, const at::Tensor& mask) const {
  const int64_t batch = x.size(0), heads = shape_.heads;
  const auto norm = [&](const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
    return at::layer_norm(input, {shape_.width}, weight, bias, shape_.layer_norm_eps);
  };
  const at::Tensor qkv = ops::Linear(norm(x, norm1_weight_, norm1_bias_), qkv_weight_, qkv_bias_)
                             .view({batch, -1, 3, heads, shape_.width / heads});
  const at::Tensor q = qkv.select(2, 0), k = qkv.select(2, 1), v = qkv.select(2, 2);
  const at::Tensor attention = mask.defined() ? ops::MaskedAttention(q, k, v, mask)
                                              : ops::Attention(q, k, v, /*causal=*/false);
  const at::Tensor seen = x + ops::Linear(attention.flatten(2), out_weight_, out_bias_);
  const at::Tensor inner =
      ops::Linear(norm(seen, norm2_weight_, norm2_bias_), fc1_weight_, fc1_bias_);
  return seen + ops::Linear(ops::Activate(inner, shape_.activation), fc2_weight_, fc2_bias_);
}

void ClipBlock::VisitJoined(const std::string& part, at::Tensor& joined,
                            const ParameterVisitor& visit) {
  std::vector<at::Tensor> parts;
  bool changed = false;
  for (size_t i = 0; i < kJoined.size(); ++i) {
    const at::Tensor before =
        joined.narrow(0, static_cast<int64_t>(i) * shape_.width, shape_.width);
    at::Tensor after = before;
    visit(name_ + "self_attn." + kJoined[i] + part, after);
    changed |= !after.is_same(before) || after.requires_grad();
    parts.push_back(std::move(after));
  }
  if (changed) joined = at::cat(parts);
}

void ClipBlock::VisitParameters(const ParameterVisitor& visit) {
  visit(name_ + "layer_norm1.weight", norm1_weight_);
  visit(name_ + "layer_norm1.bias", norm1_bias_);
  visit(name_ + "layer_norm2.weight", norm2_weight_);
  visit(name_ + "layer_norm2.bias", norm2_bias_);
  VisitJoined("weight", qkv_weight_, visit);
  VisitJoined("bias", qkv_bias_, visit);
  visit(name_ + "self_attn.out_proj.weight", out_weight_);
  visit(name_ + "self_attn.out_proj.bias", out_bias_);
  visit(name_ + "mlp.fc1.weight", fc1_weight_);
  visit(name_ + "mlp.fc1.bias", fc1_bias_);
  visit(name_ + "mlp.fc2.weight", fc2_weight_);
  visit(name_ + "mlp.fc2.bias", fc2_bias_);
}

}  // namespace llava
