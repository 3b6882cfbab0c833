#include "model/ops/ops.h"

#include <optional>
#include <tuple>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <c10/util/Exception.h>

#include "model/ops/feature.h"

#ifdef LLAVA_CUDA
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/runtime.h"
#endif

namespace llava::ops {

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  // In float32 nothing is rounded on the way: one operation of autograd, and less memory.
  if (x.is_cuda() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
      Enabled(Feature::kNorm)) {
    return at::rms_norm(x, {x.size(-1)}, weight, eps);
  }
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true).add_(eps));
  return (wide * scale).to(x.scalar_type()) * weight;
}

at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::ScalarType dtype = weight.scalar_type();
  return at::linear(x.to(dtype), weight,
                    bias.defined() ? std::make_optional(bias.to(dtype)) : std::nullopt);
}

namespace {

// The tower's wide rows pass through memory once instead of thrice. Without gradients.
std::optional<at::Tensor> QuickGeluOnDevice(const at::Tensor& x) {
#ifdef LLAVA_CUDA
  const bool differentiable = at::GradMode::is_enabled() && x.requires_grad();
  if (x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.is_contiguous() && !differentiable) {
    at::Tensor out = at::empty_like(x);
    cuda::QuickGelu(cuda::Element::kBFloat16,
                    {.x = x.const_data_ptr(), .out = out.data_ptr(), .count = x.numel()},
                    cuda::CurrentStream(x.device()));
    return out;
  }
#else
  static_cast<void>(x);
#endif
  return std::nullopt;
}

}  // namespace

at::Tensor Activate(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kQuickGelu:
      if (std::optional<at::Tensor> result = QuickGeluOnDevice(x)) return *std::move(result);
      return x * at::sigmoid(1.702 * x);
    case Activation::kGelu:
      return at::gelu(x);
  }
  TORCH_CHECK(false, "unknown activation ", static_cast<int>(activation));
}

at::Tensor reference::SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  return at::silu(gate) * up;
}

RopeTable MakeRope(const at::Tensor& positions, int64_t head_dim, double theta) {
  TORCH_CHECK(head_dim % 2 == 0, "RoPE turns pairs: head size ", head_dim, " is odd");
  const auto options = at::TensorOptions(positions.device()).dtype(at::kFloat);
  // Operation by operation as transformers does it, so that large angles round alike.
  const at::Tensor exponents = at::arange(0, head_dim, 2, options) / head_dim;
  const at::Tensor frequencies = at::pow(theta, exponents).reciprocal();
  const at::Tensor angles = positions.to(at::kFloat).unsqueeze(-1) * frequencies;
  return {angles.cos(), angles.sin()};
}

at::Tensor ApplyRope(const at::Tensor& x, const RopeTable& rope) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor first = wide.narrow(-1, 0, half), second = wide.narrow(-1, half, half);
  const at::Tensor cos = rope.cos.unsqueeze(-2), sin = rope.sin.unsqueeze(-2);  // [T, 1, Dh/2]
  return at::cat({at::addcmul(first * cos, second, sin, -1), at::addcmul(second * cos, first, sin)},
                 -1)
      .to(x.scalar_type());
}

namespace {

// On the CPU, LibTorch's attention in 16 bits is slower than in float32: several times for one
// query, no faster for many.
at::ScalarType AttentionDtype(const at::Tensor& q) {
  return q.is_cpu() ? at::kFloat : q.scalar_type();
}

at::Tensor HeadsFirst(const at::Tensor& x,
                      at::ScalarType dtype) {  // [.., T, H, Dh] -> [B, H, T, Dh]
  const at::Tensor turned = x.to(dtype).transpose(-3, -2);
  return turned.dim() == 3 ? turned.unsqueeze(0) : turned;
}

}  // namespace

at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal) {
  const int64_t num_queries = q.size(-3), num_keys = k.size(-3);
  TORCH_CHECK(!causal || num_keys >= num_queries, "causal attention of ", num_queries,
              " queries over only ", num_keys, " keys");
  TORCH_CHECK(q.size(-2) % k.size(-2) == 0, q.size(-2), " heads are no multiple of ", k.size(-2),
              " key/value heads");
  const at::ScalarType dtype = AttentionDtype(q);
  if (!causal && q.size(-2) == k.size(-2) && FitsFlash(q)) {
    // Left to choose, LibTorch takes cuDNN's on newer GPUs, which makes a plan for every size of a
    // batch of pictures that a thread meets: hundreds of milliseconds for who waits.
    const at::Tensor all = std::get<0>(at::_scaled_dot_product_flash_attention(
        HeadsFirst(q, dtype), HeadsFirst(k, dtype), HeadsFirst(v, dtype), /*dropout_p=*/0.0,
        /*is_causal=*/false, /*return_debug_mask=*/false));
    return (q.dim() == 3 ? all.squeeze(0) : all).transpose(-3, -2);
  }
  // The library's own causal flag lines up the *first* query with the first key: right only where
  // there are as many queries as keys. A single last query sees everything.
  std::optional<at::Tensor> mask;
  const bool chunk = causal && num_queries > 1 && num_queries < num_keys;
  if (chunk) {
    mask = at::ones({num_queries, num_keys}, at::TensorOptions(q.device()).dtype(at::kBool))
               .tril(num_keys - num_queries);
  }
  const at::Tensor out = at::scaled_dot_product_attention(
      HeadsFirst(q, dtype), HeadsFirst(k, dtype), HeadsFirst(v, dtype), mask, /*dropout_p=*/0.0,
      /*is_causal=*/causal && num_queries > 1 && !chunk, /*scale=*/std::nullopt,
      /*enable_gqa=*/q.size(-2) != k.size(-2));
  return (q.dim() == 3 ? out.squeeze(0) : out).transpose(-3, -2).to(q.scalar_type());
}

at::Tensor MaskedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& mask) {
  const at::ScalarType dtype = AttentionDtype(q);
  const at::Tensor out = at::scaled_dot_product_attention(
      HeadsFirst(q, dtype), HeadsFirst(k, dtype), HeadsFirst(v, dtype), mask.to(dtype).unsqueeze(1),
      /*dropout_p=*/0.0, /*is_causal=*/false, /*scale=*/std::nullopt,
      /*enable_gqa=*/q.size(-2) != k.size(-2));
  return out.transpose(-3, -2).to(q.scalar_type());
}

}  // namespace llava::ops
