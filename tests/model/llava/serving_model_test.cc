#include "model/llava/serving_model.h"

#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/nn/packed_weights.h"
#include "tests/model/llava/tiny_llava.h"

namespace llava {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Asked before the device is: none is needed here.
TEST(ServingModelTest, KeysAndValuesOfAnotherTypeAreRefusedWithWhatToDo) {
  ServingOptions options;
  options.weights = WeightType::kBFloat16;
  options.kv = KvType::kInt8;
  try {
    const ServingModel model(TinyLanguageCheckpoint(), at::Device("cuda:0"), options);
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_THAT(e.what(), HasSubstr("keys and values of bfloat16 weights on cuda:0 are kept in "
                                    "bfloat16; leave --kv-type out"));
  }
}

TEST(ServingModelTest, GroupsOfPlainWeightsAreRefusedOnAnyDevice) {
  for (const WeightType type : {WeightType::kAuto, WeightType::kBFloat16}) {
    for (const char* const device : {"cpu", "cuda:0"}) {
      ServingOptions options;
      options.weights = type;
      options.group = 64;
      try {
        const ServingModel model(TinyLanguageCheckpoint(), at::Device(device), options);
        ADD_FAILURE() << device;
      } catch (const std::invalid_argument& e) {
        EXPECT_THAT(e.what(), HasSubstr("leave --group out"));
      }
    }
  }
}

TEST(ServingModelTest, WhatIsPackedIsNotServedInFloat16) {
  LanguageCheckpoint checkpoint = TinyLanguageCheckpoint();
  checkpoint.config.decoder.quantization =
      ToQuantization({ops::cpu::WeightFormat::kBFloat16, 0, true});
  ServingOptions options;
  options.weights = WeightType::kFloat16;
  try {
    const ServingModel model(checkpoint, at::Device("cuda:0"), options);
    ADD_FAILURE();
  } catch (const std::invalid_argument& e) {
    EXPECT_THAT(e.what(), HasSubstr("ask for --dtype bfloat16 or auto"));
  }
}

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
