#include "model/checkpoint/random_tensors.h"

#include <cmath>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

const TensorShapes kShapes = {{"a.weight", {500, 401}},
                              {"b.weight", {500, 401}},
                              {"layernorm.weight", {7}},
                              {"projector.bias", {9}}};

at::Tensor Draw(const RandomTensorOptions& options, const std::string& name = "a.weight") {
  return RandomTensors(kShapes, options).Get(name).to(at::kDouble);
}

TEST(RandomTensorsTest, AreNormal) {
  RandomTensorOptions options;
  options.dtype = at::kFloat;
  const at::Tensor x = Draw(options).flatten() / 0.02;
  const double n = static_cast<double>(x.numel());
  EXPECT_NEAR(x.mean().item<double>(), 0, 5 / std::sqrt(n));
  EXPECT_NEAR((x * x).mean().item<double>(), 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR((x * x * x * x).mean().item<double>(), 3, 5 * std::sqrt(96 / n));
  EXPECT_NEAR((x > 2).to(at::kDouble).mean().item<double>(), 0.02275, 0.002);
  // Neighbours have nothing to do with each other.
  EXPECT_NEAR((x.slice(0, 1) * x.slice(0, 0, -1)).mean().item<double>(), 0, 5 / std::sqrt(n));
  EXPECT_NEAR((x.slice(0, 4) * x.slice(0, 0, -4)).mean().item<double>(), 0, 5 / std::sqrt(n));
}

TEST(RandomTensorsTest, AreFunctionsOfSeedAndName) {
  RandomTensorOptions options;
  options.seed = 3;
  const at::Tensor x = Draw(options);
  EXPECT_TRUE(at::equal(x, Draw(options)));
  EXPECT_FALSE(at::equal(x, Draw(options, "b.weight")));
  options.seed = 4;
  EXPECT_FALSE(at::equal(x, Draw(options)));
  options.seed = 3;
  options.dtype = at::kFloat;
  EXPECT_TRUE(at::equal(x, Draw(options).to(at::kBFloat16).to(at::kDouble)));
}

TEST(RandomTensorsTest, NormsAreOneAndBiasesZero) {
  EXPECT_TRUE(Draw({}, "layernorm.weight").eq(1).all().item<bool>());
  EXPECT_TRUE(Draw({}, "projector.bias").eq(0).all().item<bool>());
  EXPECT_EQ(RandomTensors(kShapes, {}).Get("a.weight").scalar_type(), at::kBFloat16);
  RandomTensorOptions options;
  options.dtype = at::kHalf;
  EXPECT_THROW(RandomTensors(kShapes, options), std::invalid_argument);
}

TEST(RandomTensorsTest, SomeStandOut) {
  RandomTensorOptions options;
  options.dtype = at::kFloat;
  const at::Tensor usual = Draw(options);
  options.outliers = 0.01;
  const at::Tensor ratio = Draw(options) / usual;
  const at::Tensor large = (ratio - 20).abs() < 1e-3;
  EXPECT_TRUE((large | ((ratio - 1).abs() < 1e-6)).all().item<bool>());
  EXPECT_NEAR(large.to(at::kDouble).mean().item<double>(), 0.01, 0.0015);
}

}  // namespace
}  // namespace llava
