// Gradients of the decoder where the kernels run (kernel_device.h) against those of the CPU in
// float32.

#include <map>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/nn/llama.h"
#include "model/ops/feature.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/ops/kernel_device.h"

namespace llava {
namespace {

class TrainingOnDeviceTest : public cuda::KernelTest {
 protected:
  void SetUp() override {
    cuda::KernelTest::SetUp();
    at::globalContext().setAllowTF32CuBLAS(false);
  }
  void TearDown() override {
    ops::Enable(ops::Feature::kFlash, true);
    ops::Enable(ops::Feature::kNorm, true);
  }

  static DecoderConfig Config() {
    DecoderConfig config = TinyDecoderConfig();
    config.hidden_size = 64;
    config.num_heads = 4;
    config.num_kv_heads = 2;
    config.head_dim = 32;
    config.num_layers = 3;
    return config;
  }

  // Matrices in `dtype`, vectors and embeddings in float32, as a run has them; of a loss over
  // sequences of 6, 70 and 1 tokens and one with branches.
  static std::map<std::string, at::Tensor> Gradients(at::Device device, at::ScalarType dtype,
                                                     bool checkpointing) {
    const DecoderConfig config = Config();
    LlamaDecoder decoder(config, MemoryTensors(RandomDecoder(config)), device, at::kFloat);
    decoder.set_gradient_checkpointing(checkpointing);
    std::map<std::string, at::Tensor> masters;
    decoder.VisitParameters([&](const std::string& name, at::Tensor& parameter) {
      masters.emplace(name, parameter.requires_grad_());
      const bool matrix = parameter.dim() > 1 && name.find("embed") == std::string::npos;
      parameter = parameter.to(matrix ? dtype : at::kFloat);
    });
    const std::vector<Segment> batch = {{.tokens = 6},
                                        {.tokens = 70},
                                        {.tokens = 1},
                                        {.tokens = 40, .shared = 21, .branches = {9, 10}}};
    const at::Tensor ids = at::remainder(at::arange(117, at::kLong) * 17 + 7, config.vocab_size);
    const at::Tensor hidden = decoder.Forward(decoder.Embed(ids), batch);
    decoder.Logits(hidden).log_softmax(-1).select(1, 5).mean().backward();
    std::map<std::string, at::Tensor> gradients;
    for (const auto& [name, master] : masters) gradients.emplace(name, master.grad().cpu());
    return gradients;
  }
};

TEST_F(TrainingOnDeviceTest, GradientsAreThoseOfTheCpu) {
  const auto expected = Gradients(at::kCPU, at::kFloat, false);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const bool newer : {true, false}) {
      ops::Enable(ops::Feature::kFlash, newer);
      ops::Enable(ops::Feature::kNorm, newer);
      const auto found = Gradients(cuda::KernelDevice(), dtype, false);
      ASSERT_EQ(found.size(), expected.size());
      for (const auto& [name, gradient] : expected) {
        const double scale = gradient.abs().max().item<double>();
        EXPECT_LT(MaxDifference(found.at(name), gradient),
                  (dtype == at::kFloat ? 1e-4 : 6e-2) * scale)
            << name << " " << dtype << (newer ? " newer" : " older");
      }
    }
  }
}

TEST_F(TrainingOnDeviceTest, RecomputedLayersGiveTheSameGradients) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto plain = Gradients(cuda::KernelDevice(), dtype, false);
    const auto recomputed = Gradients(cuda::KernelDevice(), dtype, true);
    for (const auto& [name, gradient] : plain) {
      // Sums whose order the device chooses may round otherwise.
      const double scale = gradient.abs().max().item<double>();
      EXPECT_LT(MaxDifference(recomputed.at(name), gradient),
                (dtype == at::kFloat ? 1e-5 : 2e-2) * scale)
          << name << " " << dtype;
    }
  }
}

}  // namespace
}  // namespace llava
