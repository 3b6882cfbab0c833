#pragma once

// Self-attention over a ragged batch: which token sees which, for all layers of one forward pass.

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/nn/segment.h"
#include "model/ops/ops.h"

namespace llava {

// Sequences without a cache are computed together, as training has many short ones: by the kernel
// for branches or, in 16 bits on a GPU, flash attention, else padded to the longest. Those with a
// cache each for itself. One forward pass, one thread at a time.
class RaggedAttention {
 public:
  // Throws std::invalid_argument if a segment is empty or its branches do not add up.
  RaggedAttention(std::span<const Segment> segments, at::Device device);

  // Position of every row of the batch in its sequence.
  const std::vector<int64_t>& positions() const { return positions_; }

  // q [T, H, Dh], k and v [T, Hkv, Dh] of layer `index` -> [T, H, Dh]. Turns q and k by `rope`, the
  // angles of all rows; appends to the caches.
  at::Tensor Attend(int64_t index, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const ops::RopeTable& rope) const;

 private:
  // Rows of the batch <-> rows of the padded one, and the mask of branches.
  void PlanTogether() const;
  at::Tensor AttendTogether(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;

  // Which rows see which, as stretches; for the kernels that take them.
  void PlanStretches();

  std::vector<Segment> segments_;
  std::vector<int64_t> positions_;
  int64_t longest_ = 0;
  std::shared_ptr<const ops::AttentionPlan> plan_;  // for the kernel, where it pays
  ops::FlashPlan flash_;                            // on GPUs, without caches
  bool together_ = false;  // padded, unless one of these two is there; else each for itself
  at::Device device_;
  // When the first layer asks.
  mutable std::once_flag planned_;
  mutable at::Tensor padded_from_;  // [B * longest]: row of the batch
  mutable at::Tensor row_from_;     // [T]: row of the padded batch
  mutable at::Tensor mask_;         // [B, longest, longest], 0 or -inf; undefined: causal
};

}  // namespace llava
