#pragma once

// The operations of the network. Plain LibTorch is the reference: the oracle of every kernel, and
// what runs on any device. Where own kernels exist (model/ops/cpu), they are used, forward and
// backward.
//
// Shapes: B batch, T tokens, D width, H heads, Hkv key/value heads, Dh head size. Tensors are
// contiguous, on one device, float32, bfloat16 or float16; results have the dtype of `x`.
// Stateless, thread-safe. Throw c10::Error on shapes that do not fit.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/config/model_config.h"
#include "model/ops/cpu/kernels.h"

namespace llava::ops {

// x [..., D], weight [D] -> [..., D]. Mean square in float32 whatever the dtype.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// x [..., In], weight [Out, In], bias [Out] or undefined -> [..., Out]. Computed in the dtype of
// the weight, which is that of the result: with 16-bit weights around a float32 `x` this is mixed
// precision.
at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

// x in `dtype`, once for each of its readers. All read one copy, which is what autograd keeps;
// their gradients are added up in the dtype of x.
std::vector<at::Tensor> SharedCast(const at::Tensor& x, at::ScalarType dtype, size_t readers);

// RmsNorm of x [T, D], multiplied with each of the weights [Out_i, D] -> [T, Out_i] each, in the
// dtype of the weights.
std::vector<at::Tensor> NormedLinears(const at::Tensor& x, const at::Tensor& norm, double eps,
                                      at::TensorList weights);

// x * sigmoid(1.702 x), or the exact (erf) GELU.
at::Tensor Activate(const at::Tensor& x, Activation activation);

// silu(gate) * up, both [..., D].
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);

// Cosine and sine of position * theta^(-2i/Dh), i < Dh/2: float32 [T, Dh/2] each.
struct RopeTable {
  at::Tensor cos, sin;
};
RopeTable MakeRope(const at::Tensor& positions, int64_t head_dim, double theta);

// Turns the pairs (i, i + Dh/2) of each head (Hugging Face's half rotation). x [T, H, Dh].
at::Tensor ApplyRope(const at::Tensor& x, const RopeTable& rope);

// Softmax attention of one sequence with scale Dh^-0.5. q [Tq, H, Dh], k and v [Tk, Hkv, Dh], H a
// multiple of Hkv -> [Tq, H, Dh] (or all with B in front). Causal: the last query sees all keys,
// the one before all but the last, and so on (Tk >= Tq); else every query sees all. Computed in
// float32 on the CPU; k and v may have that dtype already.
at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal);

// The same for B sequences with what each query sees: mask [B, Tq, Tk], float32, 0 or -inf, at
// least one 0 a row.
at::Tensor MaskedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& mask);

// Whether the dtype and device of `x` have own kernels.
bool HasKernels(const at::Tensor& x);

using cpu::Stretch;

// Which row sees which, in blocks of stretches that see nothing of each other.
struct AttentionPlan {
  std::vector<Stretch> stretches;  // by their first rows, without gaps
  std::vector<int64_t> first_of;   // the first stretch of each block

  int64_t num_blocks() const { return static_cast<int64_t>(first_of.size()); }
  std::span<const Stretch> Block(int64_t index) const {
    const auto end =
        index + 1 < num_blocks() ? first_of[index + 1] : static_cast<int64_t>(stretches.size());
    return std::span(stretches).subspan(first_of[index], end - first_of[index]);
  }
};

// ApplyRope on q and k, then softmax attention with scale Dh^-0.5 after the plan. q [T, H, Dh], k
// and v [T, Hkv, Dh], H a multiple of Hkv -> [T, H, Dh]. For tensors that HasKernels; scores and
// sums are in float32.
at::Tensor RotaryAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const RopeTable& rope, std::shared_ptr<const AttentionPlan> plan);

// An AttentionPlan for FlashAttention: sequences of queries behind each other, and of their keys.
struct FlashPlan {
  at::Tensor query_ends, key_ends;  // int32 [sequences + 1], from 0
  at::Tensor key_rows;              // int64: rows of k and v; undefined: those of the queries
  int64_t most_queries = 0, most_keys = 0;  // of a sequence
};
FlashPlan MakeFlashPlan(const AttentionPlan& plan, at::Device device);

// Whether LibTorch's flash attention takes `q` [.., H, Dh]: 16 bits on a GPU.
bool FitsFlash(const at::Tensor& q);
// Whether attention of `q` [T, H, Dh] is to be FlashAttention.
bool HasFlash(const at::Tensor& q);
// Softmax attention with scale Dh^-0.5 after the plan, without padding; q and k are turned already.
// Shapes as RotaryAttention. Differentiable. On the CPU sequence by sequence.
at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const FlashPlan& plan);

// What the kernels must agree with.
namespace reference {
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);
}

}  // namespace llava::ops
