#pragma once

// Body of the kernel that asks for memory which later kernels read. See block.h.

#include "model/ops/cuda/block.h"
#include "model/ops/cuda/kernels.h"

namespace llava::cuda {

inline constexpr int kLineBytes = 128;

// Blocks share the lines.
template <class Block>
LLAVA_DEVICE void PrefetchBody(Block& block, const void* data, int64_t bytes, int blocks) {
  const auto* const lines = static_cast<const char*>(data);
  block.AwaitEarlier();
  block.Each([&](int thread) {
    const int64_t step = static_cast<int64_t>(blocks) * Block::kThreads * kLineBytes;
    const int64_t first = (static_cast<int64_t>(block.x()) * Block::kThreads + thread) * kLineBytes;
    for (int64_t at = first; at < bytes; at += step) PrefetchLine(lines + at);
  });
}

}  // namespace llava::cuda
