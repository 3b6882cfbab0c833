#pragma once

// Hand-written CPU kernels. Each is compiled for several instruction sets; the best one that the
// processor has is chosen at run time. They know nothing of LibTorch: plain pointers in and out.
//
// All sums are made in float32 in an order that depends on the shapes alone, so results depend
// neither on threads nor on what else is in a batch.

#include <cstdint>
#include <string_view>
#include <vector>

namespace llava::ops::cpu {

// Element types of tensors; sums are in float32 whatever they are.
enum class Element : uint8_t { kFloat, kBFloat16 };
// Inlined whatever the optimisation, as those of gemm.h.
[[gnu::always_inline]] constexpr int64_t BytesOf(Element element) {
  return element == Element::kFloat ? 4 : 2;
}
[[gnu::always_inline]] constexpr int64_t CeilDivide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Rows of equal width, `stride` elements apart.
struct ConstRows {
  const void* data = nullptr;
  int64_t stride = 0;
};
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
};

// Consecutive rows that see themselves causally, and before that all rows of
// [shared_begin, shared_begin + shared).
struct Stretch {
  int64_t begin = 0, tokens = 0;
  int64_t shared_begin = 0, shared = 0;
};

// Self-attention with rotary positions of one block of stretches that see nothing outside of it.
struct AttentionBlock {
  Element element = Element::kFloat;              // of all rows
  int64_t heads = 0, kv_heads = 0, head_dim = 0;  // head_dim even
  int64_t begin = 0, tokens = 0;                  // the block's rows
  const Stretch* stretches = nullptr;             // rows counted as in `q`
  int64_t num_stretches = 0;
  ConstRows q, k, v;              // [T, H Dh], [T, Hkv Dh] twice, not yet turned
  const float* cosine = nullptr;  // [T, Dh / 2]
  const float* sine = nullptr;
  int64_t out_stride = 0;    // of `out` and its gradient
  void* out = nullptr;       // [T, H Dh]
  float* log_sum = nullptr;  // [T, H]: log of the sum of exponentials
};
struct AttentionGradients {
  const void* out = nullptr;  // [T, H Dh]
  Rows q, k, v;               // written, not added to
};

// Softmax attention of one head with scale Dh^-0.5, in which every query sees all keys.
struct FullAttention {
  Element element = Element::kFloat;  // of all rows
  int64_t tokens = 0, head_dim = 0;
  int64_t first = 0, count = 0;  // queries; `first` is a multiple of kQueryBlock
  ConstRows q, k, v;             // of token 0 and this head
  Rows out;
};
constexpr int64_t kQueryBlock = 96;

// Of matrix products: see gemm.h.
struct PackTask;
struct PrepareTask;
struct PanelTask;
struct FinishTask;

// Of attention over keys and values in blocks: see paged.h.
struct KvLayout;
struct WriteKvTask;
struct AttendTask;
struct FinishAttendTask;

struct Kernels {
  std::string_view name;

  // x [D] times its inverse root mean square times weight [D]. Returns the inverse root.
  float (*rms_norm)(const float* x, const float* weight, float eps, int64_t width, Element element,
                    void* out);
  // Gradient of x; adds to that of the weight. `scale`: what rms_norm returned.
  void (*rms_norm_backward)(const float* x, const float* weight, float scale, int64_t width,
                            Element element, const void* gradient, float* of_x, float* of_weight);
  // silu(gate) * up, and its gradients, over `size` elements.
  void (*swiglu)(Element element, const void* gate, const void* up, int64_t size, void* out);
  void (*swiglu_backward)(Element element, const void* gate, const void* up, const void* gradient,
                          int64_t size, void* of_gate, void* of_up);

  // All query heads of one key/value head. `scratch`: attention_scratch(..) floats, aligned to 64
  // bytes.
  int64_t (*attention_scratch)(const AttentionBlock& block, bool backward);
  void (*attention)(const AttentionBlock& block, int64_t kv_head, float* scratch);
  void (*attention_backward)(const AttentionBlock& block, int64_t kv_head,
                             const AttentionGradients& gradients, float* scratch);

  // `scratch`: full_attention_scratch(..) floats, aligned to 64 bytes.
  int64_t (*full_attention_scratch)(const FullAttention& task);
  void (*full_attention)(const FullAttention& task, float* scratch);

  // The steps of a product with packed weights. Row i of the result depends on row i of x alone,
  // and integer weights give the same bits with every instruction set; bfloat16 is summed
  // differently by portable, by avx2 and avx512, by avx512vnni and by amx.
  void (*pack)(PackTask& task);
  void (*prepare)(const PrepareTask& task);
  void (*multiply_panel)(const PanelTask& task);
  void (*finish)(const FinishTask& task);

  // The steps of paged attention. A row depends on its own sequence and position alone.
  void (*write_kv)(const WriteKvTask& task);
  int64_t (*attend_scratch)(const KvLayout& layout, int64_t rows);  // rows: tokens times group
  void (*attend)(const AttendTask& task);
  void (*finish_attend)(const FinishAttendTask& task);
};

// The best that this processor has, or the one that the environment variable LLAVA_CPU names
// (amx, avx512vnni, avx512, avx2 or portable). Throws std::invalid_argument if that is unknown or
// not to be had.
const Kernels& Best();

// All that this processor can run, best first.
const std::vector<Kernels>& Available();

}  // namespace llava::ops::cpu
