// expected/sampling.json and .safetensors: probabilities after transformers' processors.

#include <algorithm>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/llava/sampler.h"
#include "tests/parity/fixture_folder.h"

namespace llava {
namespace {

using nlohmann::json;

const FixtureFolder& Folder() { return FixtureFolder::Get(); }

SamplingOptions OptionsOf(const json& c) {
  SamplingOptions options{.temperature = 1};
  for (const auto& [key, value] : c.items()) {
    if (key == "temperature") {
      options.temperature = value;
    } else if (key == "top_k") {
      options.top_k = value;
    } else if (key == "top_p") {
      options.top_p = value;
    } else if (key == "min_p") {
      options.min_p = value;
    } else if (key == "repetition_penalty") {
      options.repetition_penalty = value;
    } else {
      EXPECT_EQ(key, "kept") << "an option that this test does not know";
    }
  }
  return options;
}

TEST(SamplingParityTest, FiltersInTheOrderOfTransformers) {
  const json& sampling = Folder().Json("sampling");
  EXPECT_EQ(sampling.at("order"),
            json({"repetition_penalty", "temperature", "top_k", "top_p", "min_p"}));
  const at::Tensor row = Folder().Tensors("sampling").Get("logits").contiguous();
  const std::span<const float> logits(row.const_data_ptr<float>(), row.numel());
  const at::Tensor ids = Folder().Tensors("sampling").Get("previous_ids").to(at::kInt).contiguous();
  const std::span<const int32_t> previous(ids.const_data_ptr<int32_t>(), ids.numel());
  ASSERT_FALSE(sampling.at("cases").empty());
  for (const auto& [name, c] : sampling.at("cases").items()) {
    const std::vector<float> found = FilteredProbabilities(logits, OptionsOf(c), previous, {});
    EXPECT_TRUE(IsNear("probs/" + name, at::tensor(found),
                       Folder().Tensors("sampling").Get("probs/" + name)));
    EXPECT_EQ(std::count_if(found.begin(), found.end(), [](float p) { return p > 0; }),
              c.at("kept").get<int64_t>())
        << name;
    // What is drawn was kept.
    for (uint64_t seed = 0; seed < 50; ++seed) {
      SamplingOptions options = OptionsOf(c);
      options.seed = seed;
      EXPECT_GT(found[Sample(logits, options, previous, {})], 0) << name;
    }
  }
}

}  // namespace
}  // namespace llava
