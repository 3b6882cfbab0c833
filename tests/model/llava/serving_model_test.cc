#include "model/llava/serving_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(WhyPlainDecoderTest, EveryTypeOfTheCpuHasKernels) {
  for (const WeightType type : {WeightType::kFloat32, WeightType::kBFloat16, WeightType::kInt8}) {
    EXPECT_THAT(WhyPlainDecoder(type, at::kCPU), IsEmpty());
  }
}

TEST(WhyPlainDecoderTest, OfAGpuFloat16HasNone) {
  const at::Device gpu(at::kCUDA, 0);
#ifdef LLAVA_CUDA
  EXPECT_THAT(WhyPlainDecoder(WeightType::kFloat16, gpu), HasSubstr("float16"));
  EXPECT_THAT(WhyPlainDecoder(WeightType::kBFloat16, gpu), IsEmpty());
#else
  EXPECT_THAT(WhyPlainDecoder(WeightType::kFloat16, gpu), HasSubstr("this build"));
  EXPECT_THAT(WhyPlainDecoder(WeightType::kBFloat16, gpu), HasSubstr("cuda:0"));
#endif
}

}  // namespace
}  // namespace llava
