#include "model/ops/ops.h"

#include <cmath>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace llava::ops {
namespace {

at::Tensor Random(at::IntArrayRef shape, uint64_t seed = 1) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

double MaxDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

// Attention written out in float64, one query at a time.
at::Tensor SlowAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         bool causal) {
  const int64_t queries = q.size(0), heads = q.size(1), width = q.size(2), keys = k.size(0);
  const int64_t group = heads / k.size(1);
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t visible = causal ? keys - queries + i + 1 : keys;
    for (int64_t h = 0; h < heads; ++h) {
      const at::Tensor seen_k = k.select(1, h / group).narrow(0, 0, visible).to(at::kDouble);
      const at::Tensor seen_v = v.select(1, h / group).narrow(0, 0, visible).to(at::kDouble);
      const at::Tensor scores =
          seen_k.mv(q.select(0, i).select(0, h).to(at::kDouble)) / std::sqrt(double(width));
      rows.push_back(seen_v.t().mv(at::softmax(scores, 0)));
    }
  }
  return at::stack(rows).view({queries, heads, width});
}

TEST(RmsNormTest, DividesByTheRootOfTheMeanSquareInFloat32) {
  const at::Tensor x = Random({5, 12}) * 3, weight = Random({12}, 2);
  const at::Tensor wide = x.to(at::kDouble);
  const at::Tensor expected =
      wide / (wide.square().mean(-1, true) + 1e-5).sqrt() * weight.to(at::kDouble);
  EXPECT_LT(MaxDifference(RmsNorm(x, weight, 1e-5), expected), 1e-6);
  // Squares of 300 overflow float16; the statistics must not be taken in it.
  const at::Tensor large = at::full({1, 64}, 300.0, at::kHalf);
  EXPECT_LT(MaxDifference(RmsNorm(large, at::ones({64}, at::kHalf), 1e-5), at::ones({1, 64})),
            1e-3);
}

TEST(ActivateTest, KnowsBothGelus) {
  const at::Tensor x = at::linspace(-6, 6, 101).to(at::kDouble);
  EXPECT_LT(MaxDifference(Activate(x, Activation::kQuickGelu), x / (1 + at::exp(-1.702 * x))),
            1e-12);
  EXPECT_LT(
      MaxDifference(Activate(x, Activation::kGelu), x * 0.5 * (1 + at::erf(x / std::sqrt(2.0)))),
      1e-12);
}

TEST(SwiGluTest, GatesBySilu) {
  const at::Tensor gate = Random({3, 8}), up = Random({3, 8}, 2);
  EXPECT_LT(MaxDifference(SwiGlu(gate, up), gate / (1 + at::exp(-gate)) * up), 1e-6);
}

TEST(RopeTest, TurnsPairsAHalfHeadApart) {
  const int64_t head_dim = 12, half = 6;
  const at::Tensor x = Random({4, 2, head_dim});
  const at::Tensor positions = at::tensor({0, 1, 7, 1900}, at::kLong);
  const at::Tensor turned = ApplyRope(x, MakeRope(positions, head_dim, 10000.0));
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = positions[t].item<int64_t>() * std::pow(10000.0, -2.0 * i / head_dim);
      const double a = x[t][1][i].item<double>(), b = x[t][1][i + half].item<double>();
      EXPECT_NEAR(turned[t][1][i].item<double>(), a * std::cos(angle) - b * std::sin(angle), 5e-4);
      EXPECT_NEAR(turned[t][1][i + half].item<double>(), b * std::cos(angle) + a * std::sin(angle),
                  5e-4);
    }
  }
  EXPECT_TRUE(at::equal(turned[0], x[0])) << "position 0 is not turned";
  EXPECT_THROW(MakeRope(positions, 5, 10000.0), c10::Error);
}

TEST(RopeTest, MakesScoresDependOnDistanceOnly) {
  const at::Tensor q = Random({1, 1, 16}), k = Random({1, 1, 16}, 2);
  const auto score = [&](int64_t m, int64_t n) {
    const auto at_position = [](const at::Tensor& x, int64_t position) {
      return ApplyRope(x, MakeRope(at::tensor({position}, at::kLong), 16, 10000.0));
    };
    return (at_position(q, m) * at_position(k, n)).sum().item<double>();
  };
  EXPECT_NEAR(score(9, 4), score(105, 100), 1e-4);
}

// queries, keys, heads, key/value heads, head size, causal
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool>;

class AttentionTest : public testing::TestWithParam<Shape> {};

TEST_P(AttentionTest, EqualsTheFormula) {
  const auto [queries, keys, heads, kv_heads, head_dim, causal] = GetParam();
  const at::Tensor q = Random({queries, heads, head_dim}, 1);
  const at::Tensor k = Random({keys, kv_heads, head_dim}, 2);
  const at::Tensor v = Random({keys, kv_heads, head_dim}, 3);
  const at::Tensor out = Attention(q, k, v, causal);
  EXPECT_EQ(out.sizes(), q.sizes());
  EXPECT_LT(MaxDifference(out, SlowAttention(q, k, v, causal)), 2e-6);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const double tolerance = dtype == at::kHalf ? 2e-3 : 1.5e-2;
    const at::Tensor narrow_q = q.to(dtype), narrow_k = k.to(dtype), narrow_v = v.to(dtype);
    const at::Tensor narrow = Attention(narrow_q, narrow_k, narrow_v, causal);
    EXPECT_EQ(narrow.scalar_type(), dtype);
    const at::Tensor expected = SlowAttention(narrow_q, narrow_k, narrow_v, causal);
    EXPECT_LT(MaxDifference(narrow, expected), tolerance);
    // As from a float32 cache.
    EXPECT_LT(
        MaxDifference(Attention(narrow_q, narrow_k.to(at::kFloat), narrow_v.to(at::kFloat), causal),
                      expected),
        tolerance);
  }
}

TEST_P(AttentionTest, HasTheGradientsOfTheFormula) {
  const auto [queries, keys, heads, kv_heads, head_dim, causal] = GetParam();
  std::vector<at::Tensor> fast = {Random({queries, heads, head_dim}, 1),
                                  Random({keys, kv_heads, head_dim}, 2),
                                  Random({keys, kv_heads, head_dim}, 3)};
  std::vector<at::Tensor> slow;
  for (at::Tensor& x : fast) {
    slow.push_back(x.clone().requires_grad_());
    x.requires_grad_();
  }
  const at::Tensor weights = Random({queries, heads, head_dim}, 4);
  (Attention(fast[0], fast[1], fast[2], causal) * weights).sum().backward();
  (SlowAttention(slow[0], slow[1], slow[2], causal) * weights).sum().backward();
  for (int i = 0; i < 3; ++i) {
    EXPECT_LT(MaxDifference(fast[i].grad(), slow[i].grad()), 1e-5) << "input " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionTest,
    testing::Values(Shape{1, 1, 1, 1, 16, true}, Shape{1, 40, 6, 2, 16, true},   // decode
                    Shape{7, 7, 4, 4, 12, true}, Shape{33, 33, 6, 2, 16, true},  // prefill
                    Shape{5, 19, 6, 2, 12, true}, Shape{2, 70, 4, 1, 32, true},  // chunked prefill
                    Shape{9, 9, 4, 4, 16, false}, Shape{3, 11, 4, 2, 12, false}));

TEST(AttentionTest, TakesABatch) {
  const at::Tensor q = Random({3, 5, 4, 8}, 1), k = Random({3, 5, 4, 8}, 2),
                   v = Random({3, 5, 4, 8}, 3);
  const at::Tensor out = Attention(q, k, v, false);
  for (int64_t b = 0; b < 3; ++b) {
    EXPECT_LT(MaxDifference(out[b], SlowAttention(q[b], k[b], v[b], false)), 2e-6);
  }
}

TEST(AttentionTest, RefusesShapesThatDoNotFit) {
  const at::Tensor q = Random({4, 4, 8}), k = Random({3, 4, 8}), odd = Random({4, 3, 8});
  EXPECT_THROW(Attention(q, k, k, true), c10::Error);
  EXPECT_THROW(Attention(q, odd, odd, true), c10::Error);
}

}  // namespace
}  // namespace llava::ops
