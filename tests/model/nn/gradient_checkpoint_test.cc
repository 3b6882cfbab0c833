// What is kept for the backward pass: measured in bytes of tensors.

#include "model/nn/gradient_checkpoint.h"

#include <algorithm>
#include <memory>

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <gtest/gtest.h>

#include "model/nn/llama.h"
#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

// Counts bytes of tensors on the CPU.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const memory = bytes > 0 ? c10::alloc_cpu(bytes) : nullptr;
    live_ += bytes;
    peak_ = std::max(peak_, live_);
    return {memory, new Block{this, memory, bytes}, &Free, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  void ResetPeak() { peak_ = live_; }
  size_t live() const { return live_; }
  size_t peak() const { return peak_; }

 private:
  struct Block {
    CountingAllocator* owner;
    void* memory;
    size_t bytes;
  };
  static void Free(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    block->owner->live_ -= block->bytes;
    if (block->memory) c10::free_cpu(block->memory);
  }
  size_t live_ = 0, peak_ = 0;
};

TEST(CheckpointTest, KeepsTheInputOfEachLayerAndNoMore) {
  // Tensors of it may outlive the test: so must the allocator.
  static CountingAllocator& counting = *new CountingAllocator();
  c10::Allocator* const before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&counting, /*priority=*/100);
  DecoderConfig config = TinyDecoderConfig();
  config.num_layers = 8;
  constexpr int64_t kTokens = 200;
  LlamaDecoder decoder(config, MemoryTensors(RandomDecoder(config)), at::kCPU, at::kFloat);
  decoder.VisitParameters(
      [](const std::string&, at::Tensor& parameter) { parameter.requires_grad_(); });
  size_t kept[2], peak[2];
  for (const bool checkpointing : {false, true}) {
    decoder.set_gradient_checkpointing(checkpointing);
    decoder.VisitParameters([](const std::string&, at::Tensor& parameter) {
      parameter.mutable_grad() = at::zeros_like(parameter);  // not to be counted
    });
    const at::Tensor ids = at::remainder(at::arange(kTokens, at::kLong), config.vocab_size);
    const size_t begin = counting.live();
    counting.ResetPeak();
    const Segment segment{.tokens = kTokens};
    const at::Tensor loss = decoder.Forward(decoder.Embed(ids), {&segment, 1}).square().sum();
    kept[checkpointing] = counting.live() - begin;
    loss.backward();
    peak[checkpointing] = counting.peak() - begin;
  }
  c10::SetCPUAllocator(before, /*priority=*/100);
  const size_t input = kTokens * config.hidden_size * sizeof(float);
  // The inputs of the layers, what is behind the last one, and small change.
  EXPECT_LT(kept[true], (config.num_layers + 6) * input);
  EXPECT_GT(kept[false], 3 * kept[true]);
  EXPECT_GT(peak[false], peak[true] * 3 / 2);
}

}  // namespace
}  // namespace llava
