#include "model/nn/ragged_attention.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "model/ops/ops.h"

namespace llava {
namespace {

// Padding may cost this many times the work of the sequences themselves.
constexpr double kMostPadding = 2;
// The kernel keeps whole rows of scores; longer sequences are left to LibTorch's attention, which
// works in blocks. A cautious bound, where the two meet was not measured.
constexpr int64_t kLongestForKernel = 512;

void Check(const Segment& segment) {
  if (segment.tokens < 1) throw std::invalid_argument("decoder: a segment without tokens");
  if (segment.branches.empty() && segment.shared == 0) return;
  const int64_t sum =
      std::accumulate(segment.branches.begin(), segment.branches.end(), segment.shared);
  const bool positive = std::all_of(segment.branches.begin(), segment.branches.end(),
                                    [](int64_t length) { return length > 0; });
  if (segment.cache || segment.shared < 1 || !positive || sum != segment.tokens) {
    throw std::invalid_argument("decoder: a segment of " + std::to_string(segment.tokens) +
                                " tokens cannot have " + std::to_string(segment.shared) +
                                " shared ones and " + std::to_string(segment.branches.size()) +
                                " branches of " + std::to_string(sum - segment.shared) +
                                " tokens in all" +
                                (segment.cache ? " (branches go without a cache)" : ""));
  }
}

// Fills the mask [longest, longest] of one segment: what a row may see gets 0.
void Show(const Segment& segment, int64_t longest, float* mask) {
  const auto see = [&](int64_t row, int64_t begin, int64_t end) {
    std::fill(mask + row * longest + begin, mask + row * longest + end, 0.0f);
  };
  const int64_t shared = segment.branches.empty() ? segment.tokens : segment.shared;
  for (int64_t row = 0; row < shared; ++row) see(row, 0, row + 1);
  int64_t begin = shared;
  for (const int64_t length : segment.branches) {
    for (int64_t row = begin; row < begin + length; ++row) {
      see(row, 0, shared);
      see(row, begin, row + 1);
    }
    begin += length;
  }
  for (int64_t row = begin; row < longest; ++row) see(row, row, row + 1);  // padding: no NaN
}

}  // namespace

RaggedAttention::RaggedAttention(std::span<const Segment> segments, at::Device device)
    : segments_(segments.begin(), segments.end()), device_(device) {
  bool cached = false;
  for (const Segment& segment : segments) {
    Check(segment);
    cached |= segment.cache != nullptr;
    longest_ = std::max(longest_, segment.tokens);
    const int64_t begin = segment.cache ? segment.cache->length() : 0;
    const int64_t plain = segment.branches.empty() ? segment.tokens : segment.shared;
    for (int64_t i = 0; i < plain; ++i) positions_.push_back(begin + i);
    for (const int64_t length : segment.branches) {
      for (int64_t i = 0; i < length; ++i) positions_.push_back(plain + i);
    }
  }
  const auto rows = static_cast<int64_t>(positions_.size());
  const auto count = static_cast<int64_t>(segments.size());
  const bool branched = std::any_of(segments.begin(), segments.end(),
                                    [](const Segment& s) { return !s.branches.empty(); });
  if (cached) return;
  PlanStretches();
  if (count == 1 && !branched) return;
  together_ = branched || static_cast<double>(longest_ * count) <= kMostPadding * rows;
}

void RaggedAttention::PlanStretches() {
  auto plan = std::make_shared<ops::AttentionPlan>();
  int64_t begin = 0;
  for (const Segment& segment : segments_) {
    plan->first_of.push_back(static_cast<int64_t>(plan->stretches.size()));
    const int64_t shared = segment.branches.empty() ? segment.tokens : segment.shared;
    plan->stretches.push_back({.begin = begin, .tokens = shared});
    int64_t row = begin + shared;
    for (const int64_t length : segment.branches) {
      plan->stretches.push_back(
          {.begin = row, .tokens = length, .shared_begin = begin, .shared = shared});
      row += length;
    }
    begin += segment.tokens;
  }
  if (!device_.is_cpu()) {
    flash_ = ops::MakeFlashPlan(*plan, device_);
    return;
  }
  for (const ops::Stretch& stretch : plan->stretches) {
    if (stretch.tokens + stretch.shared > kLongestForKernel) return;
  }
  plan_ = std::move(plan);
}

void RaggedAttention::PlanTogether() const {
  const auto count = static_cast<int64_t>(segments_.size());
  std::vector<int64_t> padded_from, row_from;
  padded_from.reserve(count * longest_);
  row_from.reserve(positions_.size());
  bool branched = false;
  int64_t begin = 0;
  for (const Segment& segment : segments_) {
    branched |= !segment.branches.empty();
    for (int64_t i = 0; i < segment.tokens; ++i) {
      row_from.push_back(static_cast<int64_t>(padded_from.size()));
      padded_from.push_back(begin + i);
    }
    for (int64_t i = segment.tokens; i < longest_; ++i) padded_from.push_back(begin);
    begin += segment.tokens;
  }
  padded_from_ = at::tensor(padded_from, at::kLong).to(device_);
  row_from_ = at::tensor(row_from, at::kLong).to(device_);
  if (!branched) return;
  at::Tensor mask = at::full({count, longest_, longest_}, -std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; ++i) {
    Show(segments_[i], longest_, mask.data_ptr<float>() + i * longest_ * longest_);
  }
  mask_ = mask.to(device_);
}

at::Tensor RaggedAttention::AttendTogether(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& v) const {
  std::call_once(planned_, [this] { PlanTogether(); });
  const auto count = static_cast<int64_t>(segments_.size());
  const auto pad = [&](const at::Tensor& x) {
    return x.index_select(0, padded_from_).view({count, longest_, x.size(1), x.size(2)});
  };
  const at::Tensor out = mask_.defined() ? ops::MaskedAttention(pad(q), pad(k), pad(v), mask_)
                                         : ops::Attention(pad(q), pad(k), pad(v), /*causal=*/true);
  return out.flatten(0, 1).index_select(0, row_from_);
}

at::Tensor RaggedAttention::Attend(int64_t index, const at::Tensor& queries, const at::Tensor& keys,
                                   const at::Tensor& v, const ops::RopeTable& rope) const {
  if (plan_ && ops::HasKernels(queries)) {
    return ops::RotaryAttention(queries, keys, v, rope, plan_);
  }
  // Queries and keys turn together: one pass of small operations instead of two.
  const at::Tensor turned = ops::ApplyRope(at::cat({queries, keys}, 1), rope);
  const at::Tensor q = turned.narrow(1, 0, queries.size(1));
  const at::Tensor k = turned.narrow(1, queries.size(1), keys.size(1));
  if (flash_.query_ends.defined() && ops::HasFlash(q)) return ops::FlashAttention(q, k, v, flash_);
  if (together_) return AttendTogether(q, k, v);
  std::vector<at::Tensor> parts;
  parts.reserve(segments_.size());
  int64_t begin = 0;
  for (const Segment& segment : segments_) {
    at::Tensor seen_k = k.narrow(0, begin, segment.tokens);
    at::Tensor seen_v = v.narrow(0, begin, segment.tokens);
    if (segment.cache) std::tie(seen_k, seen_v) = segment.cache->Append(index, seen_k, seen_v);
    parts.push_back(ops::Attention(q.narrow(0, begin, segment.tokens), seen_k, seen_v, true));
    begin += segment.tokens;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

}  // namespace llava
