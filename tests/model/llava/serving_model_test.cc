#include "model/llava/serving_model.h"

#include <stdexcept>

#include <gmock/gmock.h>

#include "tests/model/llava/tiny_llava.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

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

}  // namespace
}  // namespace llava
