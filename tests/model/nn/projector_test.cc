#include "model/nn/projector.h"

#include <cmath>
#include <stdexcept>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

ProjectorConfig Config(int64_t depth) { return {.depth = depth, .in_width = 24, .out_width = 36}; }

TEST(ProjectorTest, IsLinearLayersWithExactGeluBetween) {
  for (const int64_t depth : {1, 2, 3}) {
    const auto weights = RandomProjector(Config(depth));
    Projector projector(Config(depth), MemoryTensors(weights), at::kCPU, at::kFloat);
    const at::Tensor x =
        at::randn({2, 9, 24}, at::make_generator<at::CPUGeneratorImpl>(3), at::kFloat);
    at::Tensor expected = x;
    for (int64_t i = 0; i < depth; ++i) {
      const std::string name =
          depth == 1 ? "model.mm_projector." : "model.mm_projector." + std::to_string(2 * i) + ".";
      if (i > 0) expected = expected * 0.5 * (1 + at::erf(expected / std::sqrt(2.0)));
      expected = at::matmul(expected, weights.at(name + "weight").t()) + weights.at(name + "bias");
    }
    EXPECT_LT(MaxDifference(projector.Forward(x), expected), 1e-5) << "depth " << depth;
    EXPECT_LT(MaxDifference(projector.Forward(x[1]), expected[1]), 1e-5) << "without a batch";
    size_t visited = 0;
    projector.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
      EXPECT_TRUE(at::equal(parameter, weights.at(name))) << name;
      ++visited;
    });
    EXPECT_EQ(visited, weights.size());
  }
}

TEST(ProjectorTest, NamesMisshapenTensors) {
  auto weights = RandomProjector(Config(2));
  weights["model.mm_projector.2.weight"] = at::zeros({36, 24});
  try {
    Projector(Config(2), MemoryTensors(weights), at::kCPU, at::kFloat);
    FAIL() << "a misshapen projector was taken";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("mlp2x_gelu"));
    EXPECT_THAT(error.what(), testing::HasSubstr("model.mm_projector.2.weight"));
  }
}

}  // namespace
}  // namespace llava
