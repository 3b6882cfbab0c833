// The vision tower in bfloat16 against float32, on a GPU or the CPU (kernel_device.h).

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/nn/clip.h"
#include "model/ops/ops.h"
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

TEST_F(ClipTowerOnDeviceTest, PicturesAttendAsInFloat32) {
  const at::Tensor rows =
      at::randn({3, 17, 3, 4, 64}, at::make_generator<at::CPUGeneratorImpl>(9), at::kFloat)
          .to(at::kBFloat16);  // of q, k and v beside each other, as a block has them
  const auto attend = [](const at::Tensor& qkv) {
    return ops::Attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), /*causal=*/false);
  };
  const at::Tensor all = attend(rows.to(cuda::KernelDevice()));
  EXPECT_EQ(all.sizes(), (at::IntArrayRef{3, 17, 4, 64}));
  const at::Tensor expected = attend(rows.to(at::kFloat));
  EXPECT_LT((all.cpu().to(at::kFloat) - expected).abs().max().item<float>(), 0.02);
  const at::Tensor alone = attend(rows[1].unsqueeze(0).to(cuda::KernelDevice()));
  EXPECT_LT((all[1] - alone[0]).abs().max().item<float>(), 0.02);
}

}  // namespace
}  // namespace llava
