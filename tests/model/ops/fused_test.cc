// The operations that autograd sees as one, against the same made of LibTorch's own.
#include <memory>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/ops/ops.h"
#include "tests/support/live_bytes.h"

namespace llava::ops {
namespace {

at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

double MaxDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor Leaf(const at::Tensor& x) { return x.detach().clone().requires_grad_(); }

TEST(NormedLinearsTest, EqualsNormAndProductsWithGradients) {
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kFloat, 1e-4), std::pair(at::kBFloat16, 0.06), std::pair(at::kHalf, 0.01)}) {
    const at::Tensor x = Random({130, 24}, 1), norm = Random({24}, 2) + 1;
    const std::vector<at::Tensor> matrices = {Random({24, 24}, 3).to(dtype),
                                              Random({8, 24}, 4).to(dtype)};
    std::vector<std::vector<at::Tensor>> results;
    for (const bool fused : {true, false}) {
      const at::Tensor in = Leaf(x), scale = Leaf(norm), a = Leaf(matrices[0]),
                       b = Leaf(matrices[1]);
      const at::Tensor normed = RmsNorm(in, scale, 1e-5);
      const auto out = fused ? NormedLinears(in, scale, 1e-5, {a, b})
                             : std::vector<at::Tensor>{Linear(normed, a), Linear(normed, b)};
      ASSERT_EQ(out[1].scalar_type(), dtype);
      (out[0].to(at::kFloat).square().sum() + out[1].to(at::kFloat).sin().sum()).backward();
      results.push_back({out[0], out[1], in.grad(), scale.grad(), a.grad(), b.grad()});
    }
    for (size_t i = 0; i < results[0].size(); ++i) {
      const double size = results[1][i].abs().max().item<double>();
      EXPECT_LT(MaxDifference(results[0][i], results[1][i]), tolerance * size) << i;
    }
  }
}

TEST(NormedLinearsTest, AProductThatIsNotUsedCostsNothing) {
  const at::Tensor x = Leaf(Random({5, 16}, 1)), norm = Leaf(at::ones({16}));
  const at::Tensor a = Leaf(Random({4, 16}, 2)), b = Leaf(Random({4, 16}, 3));
  NormedLinears(x, norm, 1e-5, {a, b})[0].sum().backward();
  EXPECT_EQ(b.grad().abs().max().item<double>(), 0);
  EXPECT_GT(a.grad().abs().max().item<double>(), 0);
}

TEST(NormedLinearsTest, FrozenWeightsGetNoGradient) {
  const at::Tensor x = Leaf(Random({5, 16}, 1)), norm = at::ones({16}), a = Random({4, 16}, 2);
  NormedLinears(x, norm, 1e-5, {a})[0].sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(a.grad().defined());
  EXPECT_FALSE(norm.grad().defined());
}

TEST(NormedLinearsTest, IsTheSameWithAndWithoutGradients) {
  const at::Tensor x = Random({5, 16}, 1), norm = Random({16}, 2);
  const at::Tensor a = Random({4, 16}, 2).to(at::kBFloat16);
  const at::Tensor with = NormedLinears(Leaf(x), norm, 1e-5, {a})[0];
  const at::NoGradGuard guard;
  EXPECT_TRUE(at::equal(NormedLinears(x, norm, 1e-5, {a})[0], with));
}

// As on a GPU: there are no own kernels for this dtype.
TEST(NormedLinearsTest, AllProductsKeepOneCopyOfTheNormedRows) {
  constexpr int64_t kRows = 64, kWidth = 128, kOut = 2;
  const at::Tensor x = Leaf(Random({kRows, kWidth}, 1)), norm = Leaf(at::ones({kWidth}));
  std::vector<at::Tensor> weights;
  for (int i = 0; i < 3; ++i) weights.push_back(Leaf(Random({kOut, kWidth}, 2).to(at::kHalf)));
  const LiveBytes bytes;
  const auto out = NormedLinears(x, norm, 1e-5, weights);
  // One in float32 between the two products of the norm, and one in 16 bits.
  EXPECT_LT(bytes.now(), kRows * kWidth * (4 + 2 + 1));
}

TEST(SharedCastTest, AddsUpGradientsInTheFirstDtype) {
  const at::Tensor x = Leaf(at::full({4}, 1.001f));
  const auto cast = SharedCast(x, at::kBFloat16, 4);
  ASSERT_EQ(cast.size(), 4u);
  for (const at::Tensor& reader : cast) {
    EXPECT_TRUE(at::equal(reader, x.to(at::kBFloat16)));
    EXPECT_EQ(reader.const_data_ptr(), cast[0].const_data_ptr());
  }
  // 257 is not a number in bfloat16. The last reader is not used.
  (cast[0] * 256 + cast[1] * 0.5 + cast[2] * 0.5).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::full({4}, 257.f)));
  EXPECT_TRUE(SharedCast(x, at::kFloat, 2)[1].is_same(x));
}

TEST(SwiGluTest, EqualsTheReferenceWithGradients) {
  const at::Tensor gate = Random({17, 48}, 1), up = Random({17, 48}, 2);
  const at::Tensor g = Leaf(gate), u = Leaf(up), other_g = Leaf(gate), other_u = Leaf(up);
  // Rows of a wider tensor: not all are consecutive.
  const at::Tensor out = SwiGlu(g.narrow(1, 8, 32), u.narrow(1, 8, 32));
  const at::Tensor expected = reference::SwiGlu(other_g.narrow(1, 8, 32), other_u.narrow(1, 8, 32));
  EXPECT_LT(MaxDifference(out, expected), 1e-6);
  out.square().sum().backward();
  expected.square().sum().backward();
  EXPECT_LT(MaxDifference(g.grad(), other_g.grad()), 1e-5);
  EXPECT_LT(MaxDifference(u.grad(), other_u.grad()), 1e-5);
}

TEST(RotaryAttentionTest, EqualsRopeAndMaskedAttention) {
  // Two blocks: a sequence of 9, and two branches of 4 and 6 behind 5 shared rows.
  auto plan = std::make_shared<AttentionPlan>();
  plan->stretches = {{0, 9, 0, 0}, {9, 5, 0, 0}, {14, 4, 9, 5}, {18, 6, 9, 5}};
  plan->first_of = {0, 1};
  const std::vector<int64_t> positions = {0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2,
                                          3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 9, 10};
  const RopeTable rope = MakeRope(at::tensor(positions, at::kLong), 16, 10000);
  at::Tensor mask = at::full({24, 24}, -INFINITY);
  for (const Stretch& s : plan->stretches) {
    mask.narrow(0, s.begin, s.tokens).narrow(1, s.shared_begin, s.shared).zero_();
    mask.narrow(0, s.begin, s.tokens)
        .narrow(1, s.begin, s.tokens)
        .copy_(at::full({s.tokens, s.tokens}, -INFINITY).triu(1));
  }
  std::vector<std::vector<at::Tensor>> results;
  enum { kMasked, kFused, kFlash };
  for (const int how : {kMasked, kFused, kFlash}) {
    const at::Tensor q = Leaf(Random({24, 4, 16}, 1)), k = Leaf(Random({24, 2, 16}, 2));
    const at::Tensor both = Leaf(Random({24, 4, 16}, 3));
    const at::Tensor v = both.narrow(1, 1, 2);  // rows that do not lie together
    at::Tensor out;
    if (how == kFused) {
      out = RotaryAttention(q, k, v, rope, plan);
    } else if (how == kFlash) {
      out =
          FlashAttention(ApplyRope(q, rope), ApplyRope(k, rope), v, MakeFlashPlan(*plan, at::kCPU));
    } else {
      out = MaskedAttention(ApplyRope(q, rope).unsqueeze(0), ApplyRope(k, rope).unsqueeze(0),
                            v.unsqueeze(0), mask.unsqueeze(0))
                .squeeze(0);
    }
    out.sin().sum().backward();
    results.push_back({out, q.grad(), k.grad(), both.grad()});
  }
  for (size_t i = 0; i < results[0].size(); ++i) {
    for (const int how : {kFused, kFlash}) {
      EXPECT_LT(MaxDifference(results[0][i], results[how][i]), 1e-5) << i << " of way " << how;
    }
  }
}

TEST(FlashPlanTest, PlainSequencesReadTheRowsOfTheirQueries) {
  AttentionPlan plan;
  plan.stretches = {{0, 3, 0, 0}, {3, 5, 0, 0}};
  plan.first_of = {0, 1};
  const FlashPlan made = MakeFlashPlan(plan, at::kCPU);
  EXPECT_FALSE(made.key_rows.defined());
  EXPECT_EQ(made.most_queries, 5);
  EXPECT_EQ(made.most_keys, 5);
  EXPECT_TRUE(at::equal(made.key_ends, at::tensor({0, 3, 8}, at::kInt)));
  EXPECT_TRUE(at::equal(made.query_ends, made.key_ends));
}

TEST(RotaryAttentionTest, DoesNotDependOnTheNumberOfThreads) {
  auto plan = std::make_shared<AttentionPlan>();
  for (int64_t i = 0; i < 8; ++i) {
    plan->first_of.push_back(i);
    plan->stretches.push_back({i * 20, 20, 0, 0});
  }
  const RopeTable rope = MakeRope(at::arange(160, at::kLong), 16, 10000);
  const int before = at::get_num_threads();
  std::vector<at::Tensor> results;
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    const at::Tensor q = Leaf(Random({160, 2, 16}, 1));
    const at::Tensor out = RotaryAttention(q, q, q, rope, plan);
    out.square().sum().backward();
    results.push_back(at::cat({out, q.grad()}));
  }
  at::set_num_threads(before);
  EXPECT_TRUE(at::equal(results[0], results[1]));
}

}  // namespace
}  // namespace llava::ops
