// Every instruction set of this processor against float64 and autograd.
#include "model/ops/cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace llava::ops::cpu {
namespace {

at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kDouble);
}

double MaxDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

struct Precision {
  at::ScalarType dtype;
  Element element;
  double tolerance;  // of values about 1
};
const Precision kPrecisions[] = {{at::kFloat, Element::kFloat, 2e-6},
                                 {at::kBFloat16, Element::kBFloat16, 8e-3}};
const int64_t kOddSizes[] = {1, 7, 15, 16, 17, 33, 128, 200};

// Calls test(kernels, precision) for all of them.
template <typename Test>
void ForAll(const Test& test) {
  for (const Kernels& kernels : Available()) {
    for (const Precision& precision : kPrecisions) {
      SCOPED_TRACE(std::string(kernels.name) + " " + at::toString(precision.dtype));
      test(kernels, precision);
    }
  }
}

TEST(CpuKernelsTest, ThePortableOnesAreAlwaysThere) {
  ASSERT_FALSE(Available().empty());
  EXPECT_EQ(Available().back().name, "portable");
}

TEST(CpuKernelsTest, RmsNormAndItsGradients) {
  ForAll([](const Kernels& kernels, const Precision& precision) {
    for (const int64_t width : kOddSizes) {
      SCOPED_TRACE(width);
      const at::Tensor x = Random({width}, 1).to(at::kFloat) * 2,
                       w = Random({width}, 2).to(at::kFloat);
      const at::Tensor dy = Random({width}, 3).to(precision.dtype);
      const at::Tensor wide = x.to(at::kDouble).requires_grad_();
      const at::Tensor weight = w.to(at::kDouble).requires_grad_();
      const at::Tensor expected = wide * (wide.square().mean() + 1e-5).rsqrt() * weight;
      (expected * dy.to(at::kDouble)).sum().backward();

      const at::Tensor out = at::full({width + 1}, 77, precision.dtype);
      const float scale = kernels.rms_norm(x.data_ptr<float>(), w.data_ptr<float>(), 1e-5f, width,
                                           precision.element, out.data_ptr());
      EXPECT_LT(MaxDifference(out.narrow(0, 0, width), expected), 8 * precision.tolerance);
      EXPECT_EQ(out[width].item<float>(), 77) << "written beyond the end";
      const at::Tensor of_x = at::empty({width}, at::kFloat), of_w = at::ones({width}, at::kFloat);
      kernels.rms_norm_backward(x.data_ptr<float>(), w.data_ptr<float>(), scale, width,
                                precision.element, dy.data_ptr(), of_x.data_ptr<float>(),
                                of_w.data_ptr<float>());
      EXPECT_LT(MaxDifference(of_x, wide.grad()),
                1e-5 * std::max(1.0, wide.grad().abs().max().item<double>()));
      EXPECT_LT(MaxDifference(of_w, weight.grad() + 1), 1e-5) << "adds to what is there";
    }
  });
}

TEST(CpuKernelsTest, SwiGluAndItsGradients) {
  ForAll([](const Kernels& kernels, const Precision& precision) {
    for (const int64_t size : kOddSizes) {
      SCOPED_TRACE(size);
      const at::Tensor gate = (Random({size}, 1) * 4).to(precision.dtype);
      const at::Tensor up = Random({size}, 2).to(precision.dtype);
      const at::Tensor dy = Random({size}, 3).to(precision.dtype);
      const at::Tensor g = gate.to(at::kDouble).requires_grad_(),
                       u = up.to(at::kDouble).requires_grad_();
      const at::Tensor expected = at::silu(g) * u;
      (expected * dy.to(at::kDouble)).sum().backward();
      const auto same = [&](const at::Tensor& found, const at::Tensor& wanted) {
        EXPECT_LT(
            ((found.to(at::kDouble) - wanted).abs() / (1 + wanted.abs())).max().item<double>(),
            precision.tolerance);
      };
      const at::Tensor out = at::empty_like(gate), of_gate = at::empty_like(gate),
                       of_up = at::empty_like(up);
      kernels.swiglu(precision.element, gate.data_ptr(), up.data_ptr(), size, out.data_ptr());
      same(out, expected);
      kernels.swiglu_backward(precision.element, gate.data_ptr(), up.data_ptr(), dy.data_ptr(),
                              size, of_gate.data_ptr(), of_up.data_ptr());
      same(of_gate, g.grad());
      same(of_up, u.grad());
    }
  });
}

TEST(CpuKernelsTest, SwiGluOfExtremesIsFinite) {
  for (const Kernels& kernels : Available()) {
    SCOPED_TRACE(kernels.name);
    const std::vector<float> gate = {-1e4f, -100, -88, 88, 100, 1e4f, 0}, up(7, 1.0f), dy(7, 1.0f);
    std::vector<float> out(7), of_gate(7), of_up(7);
    kernels.swiglu(Element::kFloat, gate.data(), up.data(), 7, out.data());
    kernels.swiglu_backward(Element::kFloat, gate.data(), up.data(), dy.data(), 7, of_gate.data(),
                            of_up.data());
    for (int i = 0; i < 7; ++i) {
      EXPECT_NEAR(out[i], std::max(0.0f, gate[i]), 1e-5);
      EXPECT_TRUE(std::isfinite(of_gate[i]) && std::isfinite(of_up[i]));
    }
  }
}

// Rows of one block, and what they see.
struct Case {
  std::string name;
  int64_t heads, kv_heads, head_dim;
  int64_t before, shared;  // rows of other blocks in front; shared rows
  std::vector<int64_t> branches;
};
const Case kCases[] = {
    {"plain", 2, 2, 32, 0, 37, {}},
    {"one token", 3, 1, 2, 2, 1, {}},
    {"branches", 4, 4, 32, 5, 40, {1, 13, 16, 5, 22}},
    {"grouped heads", 8, 2, 64, 3, 17, {4, 31}},
    {"odd head size", 4, 2, 20, 1, 16, {3, 2, 33}},
    {"large heads", 2, 1, 128, 0, 48, {7, 64}},
    {"smallest heads", 1, 1, 6, 0, 3, {2, 2}},
};

class CpuAttention {
 public:
  explicit CpuAttention(const Case& of, const Precision& precision)
      : case_(of), precision_(precision) {
    stretches_.push_back({case_.before, case_.shared, 0, 0});
    rows_ = case_.before + case_.shared;
    for (const int64_t length : case_.branches) {
      stretches_.push_back({rows_, length, case_.before, case_.shared});
      rows_ += length;
    }
    const auto random = [&](int64_t heads, uint64_t seed) {
      return Random({rows_, heads, case_.head_dim}, seed).to(precision.dtype);
    };
    q = random(case_.heads, 1);
    k = random(case_.kv_heads, 2);
    v = random(case_.kv_heads, 3);
    gradient = random(case_.heads, 4);
    const at::Tensor angles = Random({rows_, case_.head_dim / 2}, 5);
    cosine = angles.cos().to(at::kFloat);
    sine = angles.sin().to(at::kFloat);
  }

  at::Tensor Mine(const at::Tensor& x) const {
    return x.narrow(0, case_.before, rows_ - case_.before);
  }

  // In float64, by autograd: the result and the gradients of q, k and v.
  std::vector<at::Tensor> Expected() const {
    const auto leaf = [](const at::Tensor& x) { return x.to(at::kDouble).requires_grad_(); };
    const at::Tensor wide_q = leaf(q), wide_k = leaf(k), wide_v = leaf(v);
    const auto turn = [&](const at::Tensor& x) {
      const int64_t half = case_.head_dim / 2;
      const at::Tensor a = x.narrow(2, 0, half), b = x.narrow(2, half, half);
      const at::Tensor c = cosine.to(at::kDouble).unsqueeze(1),
                       s = sine.to(at::kDouble).unsqueeze(1);
      return at::cat({a * c - b * s, b * c + a * s}, 2);
    };
    const int64_t group = case_.heads / case_.kv_heads;
    const at::Tensor turned_q = turn(wide_q);
    const at::Tensor turned_k = turn(wide_k).repeat_interleave(group, 1);
    const at::Tensor all_v = wide_v.repeat_interleave(group, 1);
    at::Tensor mask = at::zeros({rows_, rows_}, at::kBool);
    for (const Stretch& s : stretches_) {
      mask.narrow(0, s.begin, s.tokens).narrow(1, s.shared_begin, s.shared).fill_(true);
      mask.narrow(0, s.begin, s.tokens)
          .narrow(1, s.begin, s.tokens)
          .copy_(at::ones({s.tokens, s.tokens}, at::kBool).tril());
    }
    for (int64_t i = 0; i < case_.before; ++i) mask[i][i] = true;
    const at::Tensor scores =
        at::einsum("ihd,jhd->hij", {turned_q, turned_k}) / std::sqrt(double(case_.head_dim));
    const at::Tensor shares = scores.masked_fill(~mask, -INFINITY).softmax(-1);
    const at::Tensor out = at::einsum("hij,jhd->ihd", {shares, all_v});
    (Mine(out) * Mine(gradient).to(at::kDouble)).sum().backward();
    return {Mine(out), Mine(wide_q.grad()), Mine(wide_k.grad()), Mine(wide_v.grad())};
  }

  std::vector<at::Tensor> Found(const Kernels& kernels) const {
    const at::Tensor out = at::full_like(q, 77),
                     log_sum = at::zeros({rows_, case_.heads}, at::kFloat);
    AttentionBlock block;
    block.element = precision_.element;
    block.heads = case_.heads;
    block.kv_heads = case_.kv_heads;
    block.head_dim = case_.head_dim;
    block.begin = case_.before;
    block.tokens = rows_ - case_.before;
    block.stretches = stretches_.data();
    block.num_stretches = static_cast<int64_t>(stretches_.size());
    block.q = {q.data_ptr(), q.stride(0)};
    block.k = {k.data_ptr(), k.stride(0)};
    block.v = {v.data_ptr(), v.stride(0)};
    block.cosine = cosine.data_ptr<float>();
    block.sine = sine.data_ptr<float>();
    block.out = out.data_ptr();
    block.out_stride = out.stride(0);
    block.log_sum = log_sum.data_ptr<float>();
    const at::Tensor of_q = at::full_like(q, 77), of_k = at::full_like(k, 77),
                     of_v = at::full_like(v, 77);
    const AttentionGradients gradients{gradient.data_ptr(),
                                       {of_q.data_ptr(), of_q.stride(0)},
                                       {of_k.data_ptr(), of_k.stride(0)},
                                       {of_v.data_ptr(), of_v.stride(0)}};
    for (const bool backward : {false, true}) {
      const int64_t floats = kernels.attention_scratch(block, backward);
      // Of exactly this size, full of what must not be read: a sanitizer and the result would tell.
      const at::Tensor scratch = at::full({floats}, NAN, at::kFloat);
      for (int64_t head = 0; head < case_.kv_heads; ++head) {
        if (backward) {
          kernels.attention_backward(block, head, gradients, scratch.data_ptr<float>());
        } else {
          kernels.attention(block, head, scratch.data_ptr<float>());
        }
      }
    }
    for (const at::Tensor& x : {out, of_q, of_k, of_v}) {
      EXPECT_TRUE((x.narrow(0, 0, case_.before) == 77).all().item<bool>())
          << "a foreign row was written";
    }
    return {Mine(out), Mine(of_q), Mine(of_k), Mine(of_v)};
  }

 private:
  const Case& case_;
  const Precision precision_;
  std::vector<Stretch> stretches_;
  int64_t rows_;
  at::Tensor q, k, v, gradient, cosine, sine;
};

TEST(CpuKernelsTest, AttentionOfBranchesAndItsGradients) {
  ForAll([](const Kernels& kernels, const Precision& precision) {
    for (const Case& one : kCases) {
      SCOPED_TRACE(one.name);
      const CpuAttention attention(one, precision);
      const auto expected = attention.Expected(), found = attention.Found(kernels);
      const char* const names[] = {"out", "gradient of q", "of k", "of v"};
      for (size_t i = 0; i < expected.size(); ++i) {
        const double size = std::max(1.0, expected[i].abs().max().item<double>());
        EXPECT_LT(MaxDifference(found[i], expected[i]), 4 * precision.tolerance * size) << names[i];
      }
    }
  });
}

}  // namespace
}  // namespace llava::ops::cpu
