#include "model/train/optimizer.h"

#include <cmath>
#include <stdexcept>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

TEST(RateFactorTest, RisesThenFalls) {
  EXPECT_EQ(RateFactor(0, 100, 4, 0), 0);
  EXPECT_DOUBLE_EQ(RateFactor(1, 100, 4, 0), 0.25);
  EXPECT_DOUBLE_EQ(RateFactor(4, 100, 4, 0), 1);
  EXPECT_NEAR(RateFactor(52, 100, 4, 0), 0.5, 1e-12);
  EXPECT_NEAR(RateFactor(100, 100, 4, 0), 0, 1e-12);
  EXPECT_NEAR(RateFactor(150, 100, 4, 0), 0, 1e-12) << "must not rise again";
  EXPECT_DOUBLE_EQ(RateFactor(0, 10, 0, 0), 1);
  EXPECT_DOUBLE_EQ(RateFactor(1, 100, 4, 0.1), 0.25) << "the warm-up begins at 0";
  EXPECT_NEAR(RateFactor(52, 100, 4, 0.1), 0.55, 1e-12);
  EXPECT_DOUBLE_EQ(RateFactor(100, 100, 4, 0.1), 0.1);
}

TEST(WarmupStepsTest, RoundsUp) {
  EXPECT_EQ(WarmupSteps(10, 0.03), 1);
  EXPECT_EQ(WarmupSteps(100, 0.03), 3);
  EXPECT_EQ(WarmupSteps(101, 0.03), 4);
  EXPECT_EQ(WarmupSteps(100, 0), 0);
}

TEST(ClipGradientsTest, ScalesAllGradientsToOneNorm) {
  at::Tensor a = at::zeros({2}), b = at::zeros({1}), untouched = at::zeros({3});
  a.mutable_grad() = at::tensor({3.0f, 0.0f});
  b.mutable_grad() = at::tensor({4.0f});
  EXPECT_NEAR(ClipGradients({a, untouched, b}, 1.0), 5.0, 1e-6);
  EXPECT_NEAR(a.grad()[0].item<double>(), 0.6, 1e-5);
  EXPECT_NEAR(b.grad()[0].item<double>(), 0.8, 1e-5);
  EXPECT_FALSE(untouched.grad().defined());
  EXPECT_NEAR(ClipGradients({a, b}, 10.0), 1.0, 1e-5);
  EXPECT_NEAR(a.grad()[0].item<double>(), 0.6, 1e-5) << "short gradients stay";
  EXPECT_EQ(ClipGradients({untouched}, 1.0), 0);
}

TEST(ClipGradientsTest, LeavesGradientsAloneWhenTheNormIsNotFinite) {
  at::Tensor a = at::zeros({2});
  a.mutable_grad() = at::tensor({1.0f, INFINITY});
  EXPECT_FALSE(std::isfinite(ClipGradients({a}, 1.0)));
  EXPECT_EQ(a.grad()[0].item<float>(), 1.0f);
}

// Decoupled weight decay and bias correction as in the paper, in float64.
struct SlowAdamW {
  at::Tensor p, m, v;
  int step = 0;
  explicit SlowAdamW(const at::Tensor& start)
      : p(start.to(at::kDouble).clone()), m(at::zeros_like(p)), v(at::zeros_like(p)) {}
  void Step(const at::Tensor& grad, double rate, const AdamW::Options& o) {
    const at::Tensor g = grad.to(at::kDouble);
    ++step;
    p = p - rate * o.weight_decay * p;
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    const at::Tensor m_hat = m / (1 - std::pow(o.beta1, step));
    const at::Tensor v_hat = v / (1 - std::pow(o.beta2, step));
    p = p - rate * m_hat / (v_hat.sqrt() + o.eps);
  }
};

TEST(AdamWTest, FollowsTheFormulas) {
  for (const double decay : {0.0, 0.1}) {
    const AdamW::Options options{.weight_decay = decay};
    at::Tensor a = Random({5, 7}, 1).requires_grad_(), b = Random({3}, 2).requires_grad_();
    SlowAdamW slow_a(a.detach()), slow_b(b.detach());
    AdamW optimizer({a, b}, options);
    for (int step = 0; step < 20; ++step) {
      const double rate = 1e-2 * (step + 1) / 20;
      a.mutable_grad() = Random({5, 7}, 10 + step);
      slow_a.Step(a.grad(), rate, options);
      if (step % 3 != 1) {  // sometimes without a gradient: then nothing moves, its clock neither
        b.mutable_grad() = Random({3}, 100 + step);
        slow_b.Step(b.grad(), rate, options);
      }
      optimizer.Step(rate);
      optimizer.ZeroGradients();
      EXPECT_FALSE(a.grad().defined());
    }
    EXPECT_TRUE(at::allclose(a.detach().to(at::kDouble), slow_a.p, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(b.detach().to(at::kDouble), slow_b.p, 1e-5, 1e-5));
    EXPECT_TRUE(a.requires_grad());
  }
}

TEST(AdamWTest, AStepIsSeenByTheVersionOfWhatItChanges) {
  const at::Tensor stepped = at::ones({4}).requires_grad_(), idle = at::ones({4}).requires_grad_();
  stepped.mutable_grad() = at::ones({4});
  AdamW optimizer({stepped, idle}, {});
  const auto before = stepped._version(), idle_before = idle._version();
  optimizer.Step(0.1);
  EXPECT_GT(stepped._version(), before);
  EXPECT_EQ(idle._version(), idle_before);
}

TEST(AdamWTest, RefusesSixteenBitParameters) {
  EXPECT_THROW(AdamW({at::ones({4}, at::kBFloat16)}, {}), std::invalid_argument);
}

TEST(AdamWTest, GoesOnFromItsSavedState) {
  const auto gradient = [](int step) { return Random({3, 2}, 50 + step); };
  at::Tensor straight = Random({3, 2}, 1), resumed = straight.clone();
  AdamW first({straight}, {}), before({resumed}, {}), after({resumed}, {});
  for (int step = 0; step < 6; ++step) {
    straight.mutable_grad() = gradient(step);
    resumed.mutable_grad() = gradient(step);
    first.Step(0.1);
    if (step == 3) {
      std::vector<at::Tensor> saved;
      before.VisitState([&](size_t, const std::string&, at::Tensor& t) { saved.push_back(t); });
      size_t next = 0;
      after.VisitState([&](size_t, const std::string&, at::Tensor& t) { t.copy_(saved[next++]); });
    }
    (step < 3 ? before : after).Step(0.1);
  }
  EXPECT_TRUE(at::equal(straight, resumed));
}

}  // namespace
}  // namespace llava
