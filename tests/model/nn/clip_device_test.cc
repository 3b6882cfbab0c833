// The vision tower in bfloat16 against float32, on a GPU or the CPU (kernel_device.h).

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/nn/clip.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/ops/kernel_device.h"

namespace llava {
namespace {

using ClipTowerOnDeviceTest = cuda::KernelTest;

TEST_F(ClipTowerOnDeviceTest, KeepsItsDirectionInBFloat16) {
  at::globalContext().setAllowTF32CuBLAS(false);
  VisionConfig config = TinyTowerConfig();
  config.hidden_size = 128;
  config.intermediate_size = 512;
  config.num_layers = 6;
  config.image_size = 56;
  const TensorSource tensors = MemoryTensors(RandomTower(config));
  const ClipTower exact(config, tensors, at::kCPU, at::kFloat);
  const ClipTower tower(config, tensors, cuda::KernelDevice(), at::kBFloat16);
  const at::Tensor pixels =
      at::randn({3, 3, 56, 56}, at::make_generator<at::CPUGeneratorImpl>(8), at::kFloat);
  const at::Tensor found = tower.Features(pixels, {}).cpu().to(at::kFloat);
  const at::Tensor cosines = at::cosine_similarity(found, exact.Features(pixels, {}), 2);
  EXPECT_GE(cosines.min().item<float>(), 0.99);
  EXPECT_LT(cosines.min().item<float>(), 1) << "nothing was rounded";
}

}  // namespace
}  // namespace llava
