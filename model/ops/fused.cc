// Operations that autograd sees as one each: on the CPU in float32 and bfloat16, by own kernels.
#include <algorithm>
#include <memory>
#include <utility>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/ops/cpu/kernels.h"
#include "model/ops/ops.h"

namespace llava::ops {
namespace {

using cpu::Element;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool IsPlain(at::ScalarType dtype) { return dtype == at::kFloat || dtype == at::kBFloat16; }

Element ElementOf(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? Element::kFloat : Element::kBFloat16;
}

char* Byte(const at::Tensor& x, int64_t index) {
  return static_cast<char*>(x.data_ptr()) + index * static_cast<int64_t>(x.element_size());
}

// Rows of [T, W] or [T, H, Dh] whose last dimensions lie together.
at::Tensor WithPlainRows(const at::Tensor& x) {
  const bool plain = x.stride(-1) == 1 && (x.dim() < 3 || x.stride(1) == x.size(2));
  return plain ? x : x.contiguous();
}

constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kElementsAtOnce = 1 << 15;

// x [T, D] float32 -> [T, D] in `dtype`; the inverse roots [T] are optional.
at::Tensor Normed(const at::Tensor& x, const at::Tensor& norm, double eps, at::ScalarType dtype,
                  float* scales) {
  const at::Tensor out = at::empty(x.sizes(), x.options().dtype(dtype));
  const int64_t width = x.size(1);
  const cpu::Kernels& kernels = cpu::Best();
  at::parallel_for(0, x.size(0), kRowsAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float scale =
          kernels.rms_norm(x.const_data_ptr<float>() + t * width, norm.const_data_ptr<float>(),
                           static_cast<float>(eps), width, ElementOf(out), Byte(out, t * width));
      if (scales) scales[t] = scale;
    }
  });
  return out;
}

class NormedLinearsFunction : public Function<NormedLinearsFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& input,
                               const at::Tensor& norm, double eps, at::TensorList weights) {
    const at::Tensor x = input.contiguous();
    const at::Tensor normed = Normed(x, norm, eps, weights[0].scalar_type(), nullptr);
    variable_list out, saved = {x, norm};
    for (const at::Tensor& weight : weights) {
      out.push_back(at::linear(normed, weight));
      saved.push_back(weight);
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &norm = saved[1];
    const double eps = context->saved_data["eps"].toDouble();
    const at::TensorList weights = at::TensorList(saved).slice(2);
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) {  // this product was not used
        gradients[i] = at::zeros({x.size(0), weights[i].size(0)}, weights[i].options());
      }
    }
    const at::Tensor scales = at::empty({x.size(0)}, x.options());
    const at::Tensor normed =
        Normed(x, norm, eps, weights[0].scalar_type(), scales.data_ptr<float>());
    variable_list result(3 + weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      if (context->needs_input_grad(2 + i)) result[3 + i] = at::mm(gradients[i].t(), normed);
    }
    if (!context->needs_input_grad(0) && !context->needs_input_grad(1)) return result;
    // One product, so that the sum over the weights is rounded once.
    const at::Tensor of_normed =
        (weights.size() == 1 ? at::mm(gradients[0], weights[0])
                             : at::mm(at::cat(gradients, 1), at::cat(weights)))
            .contiguous();
    std::tie(result[0], result[1]) = NormBackward(x, norm, scales, of_normed);
    return result;
  }

 private:
  static std::pair<at::Tensor, at::Tensor> NormBackward(const at::Tensor& x, const at::Tensor& norm,
                                                        const at::Tensor& scales,
                                                        const at::Tensor& gradient) {
    const int64_t rows = x.size(0), width = x.size(1);
    const at::Tensor of_x = at::empty_like(x);
    // A sum for each thread, added up in their order.
    const int64_t parts =
        std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows / kRowsAtOnce));
    const at::Tensor of_norm = at::zeros({parts, width}, x.options());
    const cpu::Kernels& kernels = cpu::Best();
    at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        for (int64_t t = rows * part / parts; t < rows * (part + 1) / parts; ++t) {
          kernels.rms_norm_backward(x.const_data_ptr<float>() + t * width,
                                    norm.const_data_ptr<float>(), scales.const_data_ptr<float>()[t],
                                    width, ElementOf(gradient), Byte(gradient, t * width),
                                    of_x.data_ptr<float>() + t * width,
                                    of_norm.data_ptr<float>() + part * width);
        }
      }
    });
    return {of_x, of_norm.sum(0)};
  }
};

class SharedCastFunction : public Function<SharedCastFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x, at::ScalarType dtype,
                               size_t readers) {
    context->set_materialize_grads(false);
    context->saved_data["dtype"] = static_cast<int64_t>(x.scalar_type());
    const at::Tensor cast = x.to(dtype);
    variable_list out;
    for (size_t i = 0; i < readers; ++i) out.push_back(cast.detach());  // the same memory
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto dtype = static_cast<at::ScalarType>(context->saved_data["dtype"].toInt());
    at::Tensor sum;
    for (const at::Tensor& gradient : gradients) {
      if (!gradient.defined()) continue;  // this reader was not used
      sum = sum.defined() ? sum.add_(gradient) : gradient.to(dtype);
    }
    return {sum, at::Tensor(), at::Tensor()};
  }
};

class SwiGluFunction : public Function<SwiGluFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_rows,
                            const at::Tensor& up_rows) {
    const at::Tensor gate = gate_rows.contiguous(), up = up_rows.contiguous();
    const at::Tensor out = at::empty_like(gate);
    at::parallel_for(0, gate.numel(), kElementsAtOnce, [&](int64_t begin, int64_t end) {
      cpu::Best().swiglu(ElementOf(gate), Byte(gate, begin), Byte(up, begin), end - begin,
                         Byte(out, begin));
    });
    context->save_for_backward({gate, up});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1], gradient = gradients[0].contiguous();
    const at::Tensor of_gate = at::empty_like(gate), of_up = at::empty_like(up);
    at::parallel_for(0, gate.numel(), kElementsAtOnce, [&](int64_t begin, int64_t end) {
      cpu::Best().swiglu_backward(ElementOf(gate), Byte(gate, begin), Byte(up, begin),
                                  Byte(gradient, begin), end - begin, Byte(of_gate, begin),
                                  Byte(of_up, begin));
    });
    return {of_gate, of_up};
  }
};

// How a plan travels from forward to backward: autograd's context holds values of its own kinds.
struct PlanHolder : torch::CustomClassHolder {
  explicit PlanHolder(std::shared_ptr<const AttentionPlan> of) : plan(std::move(of)) {}
  std::shared_ptr<const AttentionPlan> plan;
};

class RotaryAttentionFunction : public Function<RotaryAttentionFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& queries,
                            const at::Tensor& keys, const at::Tensor& values,
                            const at::Tensor& cosine, const at::Tensor& sine,
                            std::shared_ptr<const AttentionPlan> plan) {
    const Work work{
        WithPlainRows(queries),
        WithPlainRows(keys),
        WithPlainRows(values),
        cosine.contiguous(),
        sine.contiguous(),
        at::empty(queries.sizes(), queries.options()),
        at::empty({queries.size(0), queries.size(1)}, queries.options().dtype(at::kFloat))};
    ForBlocks(work, *plan, /*backward=*/false,
              [](const cpu::AttentionBlock& block, int64_t kv_head, float* scratch) {
                cpu::Best().attention(block, kv_head, scratch);
              });
    context->save_for_backward(
        {work.q, work.k, work.v, work.cosine, work.sine, work.out, work.log_sum});
    context->saved_data["plan"] =
        c10::IValue::make_capsule(c10::make_intrusive<PlanHolder>(std::move(plan)));
    return work.out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Work work{saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6]};
    const auto plan =
        c10::static_intrusive_pointer_cast<PlanHolder>(context->saved_data["plan"].toCapsule())
            ->plan;
    const at::Tensor gradient = gradients[0].contiguous();
    const at::Tensor of_q = at::empty(work.q.sizes(), work.q.options());
    const at::Tensor of_k = at::empty(work.k.sizes(), work.k.options());
    const at::Tensor of_v = at::empty(work.v.sizes(), work.v.options());
    const cpu::AttentionGradients out{gradient.data_ptr(), RowsOf(of_q), RowsOf(of_k),
                                      RowsOf(of_v)};
    ForBlocks(work, *plan, /*backward=*/true,
              [&](const cpu::AttentionBlock& block, int64_t kv_head, float* scratch) {
                cpu::Best().attention_backward(block, kv_head, out, scratch);
              });
    return {of_q, of_k, of_v, at::Tensor(), at::Tensor(), at::Tensor()};
  }

 private:
  struct Work {
    at::Tensor q, k, v, cosine, sine, out, log_sum;
  };
  static cpu::Rows RowsOf(const at::Tensor& x) { return {x.data_ptr(), x.stride(0)}; }

  // Calls compute(block, key/value head, scratch memory) for all of them, on several threads.
  template <typename Compute>
  static void ForBlocks(const Work& work, const AttentionPlan& plan, bool backward,
                        const Compute& compute) {
    const int64_t kv_heads = work.k.size(1), blocks = plan.num_blocks();
    const auto block_at = [&](int64_t i) {
      const std::span<const Stretch> stretches = plan.Block(i);
      cpu::AttentionBlock block;
      block.element = ElementOf(work.q);
      block.heads = work.q.size(1);
      block.kv_heads = kv_heads;
      block.head_dim = work.q.size(2);
      block.begin = stretches.front().begin;
      block.tokens = stretches.back().begin + stretches.back().tokens - block.begin;
      block.stretches = stretches.data();
      block.num_stretches = static_cast<int64_t>(stretches.size());
      block.q = {work.q.data_ptr(), work.q.stride(0)};
      block.k = {work.k.data_ptr(), work.k.stride(0)};
      block.v = {work.v.data_ptr(), work.v.stride(0)};
      block.cosine = work.cosine.const_data_ptr<float>();
      block.sine = work.sine.const_data_ptr<float>();
      block.out = work.out.data_ptr();
      block.out_stride = work.out.stride(0);
      block.log_sum = work.log_sum.data_ptr<float>();
      return block;
    };
    at::parallel_for(0, blocks * kv_heads, 1, [&](int64_t first, int64_t last) {
      at::Tensor scratch;
      for (int64_t task = first; task < last; ++task) {
        const cpu::AttentionBlock block = block_at(task / kv_heads);
        const int64_t floats = cpu::Best().attention_scratch(block, backward);
        if (!scratch.defined() || scratch.numel() < floats) {
          scratch = at::empty({floats}, at::kFloat);
        }
        compute(block, task % kv_heads, scratch.data_ptr<float>());
      }
    });
  }
};

}  // namespace

std::vector<at::Tensor> SharedCast(const at::Tensor& x, at::ScalarType dtype, size_t readers) {
  const bool differentiable = at::GradMode::is_enabled() && x.requires_grad();
  if (!differentiable || x.scalar_type() == dtype) return std::vector(readers, x.to(dtype));
  return SharedCastFunction::apply(x, dtype, readers);
}

std::vector<at::Tensor> NormedLinears(const at::Tensor& x, const at::Tensor& norm, double eps,
                                      at::TensorList weights) {
  const bool kernels = HasKernels(x) && x.scalar_type() == at::kFloat &&
                       norm.scalar_type() == at::kFloat && IsPlain(weights[0].scalar_type());
  if (kernels && at::GradMode::is_enabled()) {
    return NormedLinearsFunction::apply(x, norm, eps, weights);
  }
  const std::vector<at::Tensor> normed =
      kernels ? std::vector(weights.size(),
                            Normed(x.contiguous(), norm, eps, weights[0].scalar_type(), nullptr))
              : SharedCast(RmsNorm(x, norm, eps), weights[0].scalar_type(), weights.size());
  std::vector<at::Tensor> out;
  for (size_t i = 0; i < weights.size(); ++i) out.push_back(Linear(normed[i], weights[i]));
  return out;
}

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  return HasKernels(gate) ? SwiGluFunction::apply(gate, up) : reference::SwiGlu(gate, up);
}

at::Tensor RotaryAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const RopeTable& rope, std::shared_ptr<const AttentionPlan> plan) {
  TORCH_CHECK(HasKernels(q), "RotaryAttention has kernels for float32 and bfloat16 on the CPU");
  TORCH_CHECK(q.size(1) % k.size(1) == 0, q.size(1), " heads are no multiple of ", k.size(1),
              " key/value heads");
  return RotaryAttentionFunction::apply(q, k, v, rope.cos, rope.sin, std::move(plan));
}

bool HasKernels(const at::Tensor& x) { return x.is_cpu() && IsPlain(x.scalar_type()); }

}  // namespace llava::ops
