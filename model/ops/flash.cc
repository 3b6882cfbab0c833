// Attention over sequences of any lengths in one call: LibTorch's flash attention on GPUs.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>

#include "model/ops/feature.h"
#include "model/ops/ops.h"

namespace llava::ops {

FlashPlan MakeFlashPlan(const AttentionPlan& plan, at::Device device) {
  FlashPlan made;
  std::vector<int32_t> query_ends = {0}, key_ends = {0};
  std::vector<int64_t> key_rows;
  bool shares = false;
  for (const Stretch& stretch : plan.stretches) {
    for (int64_t i = 0; i < stretch.shared; ++i) key_rows.push_back(stretch.shared_begin + i);
    for (int64_t i = 0; i < stretch.tokens; ++i) key_rows.push_back(stretch.begin + i);
    shares |= stretch.shared > 0;
    query_ends.push_back(query_ends.back() + static_cast<int32_t>(stretch.tokens));
    key_ends.push_back(static_cast<int32_t>(key_rows.size()));
    made.most_queries = std::max(made.most_queries, stretch.tokens);
    made.most_keys = std::max(made.most_keys, stretch.shared + stretch.tokens);
  }
  made.query_ends = at::tensor(query_ends, at::kInt).to(device);
  made.key_ends = at::tensor(key_ends, at::kInt).to(device);
  if (shares) made.key_rows = at::tensor(key_rows, at::kLong).to(device);
  return made;
}

bool FitsFlash(const at::Tensor& q) {
  const auto dtype = q.scalar_type();
  return q.is_cuda() && (dtype == at::kBFloat16 || dtype == at::kHalf) && q.size(-1) % 8 == 0 &&
         q.size(-1) <= 256;
}

bool HasFlash(const at::Tensor& q) { return FitsFlash(q) && Enabled(Feature::kFlash); }

at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                          const FlashPlan& plan) {
  TORCH_CHECK(q.size(1) % keys.size(1) == 0, q.size(1), " heads are no multiple of ", keys.size(1),
              " key/value heads");
  // A row that several branches see stands there for each of them; their gradients are added up.
  const at::Tensor k = plan.key_rows.defined() ? keys.index_select(0, plan.key_rows) : keys;
  const at::Tensor v = plan.key_rows.defined() ? values.index_select(0, plan.key_rows) : values;
  if (q.is_cuda()) {
    // Called by its own name, "causal" lets a sequence's last query see all of its keys.
    return std::get<0>(at::_flash_attention_forward(
        q, k, v, plan.query_ends, plan.key_ends, plan.most_queries, plan.most_keys,
        /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false,
        1.0 / std::sqrt(static_cast<double>(q.size(2)))));
  }
  const int32_t* const query_ends = plan.query_ends.const_data_ptr<int32_t>();
  const int32_t* const key_ends = plan.key_ends.const_data_ptr<int32_t>();
  std::vector<at::Tensor> parts;
  for (int64_t i = 1; i < plan.query_ends.size(0); ++i) {
    const int64_t first = key_ends[i - 1], count = key_ends[i] - first;
    parts.push_back(Attention(q.narrow(0, query_ends[i - 1], query_ends[i] - query_ends[i - 1]),
                              k.narrow(0, first, count), v.narrow(0, first, count),
                              /*causal=*/true));
  }
  return at::cat(parts);
}

}  // namespace llava::ops
