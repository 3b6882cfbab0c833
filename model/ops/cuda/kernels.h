#pragma once

// Kernels of the CUDA worker behind plain functions; no LibTorch here. All pointers are of one
// device, matrices are row by row, and numbers are float32 or bfloat16 as `element` says; sums are
// float32. The functions queue work on the stream and return. They throw std::invalid_argument for
// shapes they cannot do and std::runtime_error if CUDA refuses a launch. Thread-safe.
//
// Weights and index arrays (int32_t) are read while the kernel ahead in the stream may still run:
// they must be complete before that one begins.

#include <cstdint>

struct CUstream_st;

namespace llava::cuda {

using Stream = CUstream_st*;

enum class Element : uint8_t { kFloat, kBFloat16 };

// Tokens of a block of keys and values, and of a stretch of decode attention.
inline constexpr int kBlockTokens = 16;
inline constexpr int kSplitTokens = 128;

// residual += delta (if there is one); out = residual / rms(residual) * weight. Rounds after each
// of these like the plain operations.
struct AddRmsNormArgs {
  void* residual;      // [rows, width]
  const void* delta;   // [rows, width] or null
  const void* weight;  // [width]
  void* out;           // [rows, width]
  int width;
  float eps;
};
void AddRmsNorm(Element element, const AddRmsNormArgs& args, int64_t rows, Stream stream);

// Turns the pairs (i, i + Dh/2) of the query and key heads in place, and writes keys and values
// into the cache.
struct RopeToCacheArgs {
  void* qkv;                 // [rows, H + 2 Hkv, Dh]
  const float *cos, *sin;    // [positions, Dh/2]
  const int32_t* positions;  // [rows]
  const int32_t* slots;      // [rows]: where in the cache
  void *k_cache, *v_cache;   // [slots, Hkv, Dh]
  int num_heads, num_kv_heads, head_dim;
};
void RopeToCache(Element element, const RopeToCacheArgs& args, int64_t rows, Stream stream);

// out = silu(gate) * up.
struct SwiGluArgs {
  const void* gate_up;  // [rows, 2 width]
  void* out;            // [rows, width]
  int width;
};
void SwiGlu(Element element, const SwiGluArgs& args, int64_t rows, Stream stream);

// out = x * sigmoid(1.702 x).
struct QuickGeluArgs {
  const void* x;  // [count]
  void* out;      // [count]; x itself will do
  int64_t count;
};
void QuickGelu(Element element, const QuickGeluArgs& args, Stream stream);

// Attention of one query for each of the sequences. Dh: a multiple of 8 up to 256, or even up
// to 64.
struct PagedAttentionArgs {
  const void* q;  // [rows, H, Dh] with `q_stride` values between rows
  int64_t q_stride;
  const void *k_cache, *v_cache;  // [slots, Hkv, Dh]
  const int32_t* rows;            // [sequences]: which row of q and out
  const int32_t* lengths;         // [sequences]: keys that it sees, at most splits * kSplitTokens
  const int32_t* tables;          // [sequences, table_stride]: its blocks
  int table_stride;
  int num_heads, num_kv_heads, head_dim;
  float scale;
  int splits;                   // stretches of the longest sequence
  bool beside_streams = false;  // leave room to products before and behind it that read ahead
  float* partial;               // scratch: [sequences, H, splits, Dh + 2]
  void* out;                    // [rows, H, Dh]
};
void PagedAttention(Element element, const PagedAttentionArgs& args, int64_t sequences,
                    Stream stream);
bool HasPagedAttention(int64_t head_dim);

// out = x weight^T for one row of bfloat16; depth a multiple of 8 up to kRowMostDepth. Gated: out
// [rows / 2] = SwiGlu of the product.
inline constexpr int kRowMostDepth = 13824;  // x lies in shared memory beside the weights
struct RowProductArgs {
  const void* x;       // [depth]
  const void* weight;  // [rows, depth]
  void* out;           // [rows]
  int rows, depth;
  bool gated;
};
void MultiplyRow(const RowProductArgs& args, Stream stream);

// Matrices of int8 or int4 with a scale for each group along their depth, in panels of 32 rows as
// model/ops/cpu/gemm.h describes them.
inline constexpr int kPanelRows = 32;
struct PackedWeights {
  const uint8_t* panels;
  // The weights kept apart, which are zero in the panels: those of row n are [first[n], first[n +
  // 1]).
  struct Apart {
    int32_t k;
    float value;
  };
  const int32_t* first;  // [rows + 1]
  const Apart* apart;
  int rows, depth;
  int group;  // 32, 64 or 128
  bool int4;  // else int8
};

// out = x weight^T for at most kPackedRows rows of bfloat16; depth a multiple of 8. The weights are
// taken exactly as they are. Gated: out [rows, weight.rows / 2] = SwiGlu of the product; half of
// the weight's rows must fill panels.
inline constexpr int kPackedRows = 64;
struct PackedProductArgs {
  const void* x;  // [rows, depth]
  PackedWeights weight;
  void* out;  // [rows, weight.rows]
  bool gated;
  int rows;
};
void MultiplyPacked(const PackedProductArgs& args, Stream stream);

// The same for few rows, in another order of sums; for those that it can and, on this device,
// should be quicker with.
bool StreamsPacked(const PackedProductArgs& args);
void MultiplyPackedStream(const PackedProductArgs& args, Stream stream);

// The same, faster for more than 16 rows. `partial`: scratch, float32 [SlicesOf(weight), rows, rows
// of the weight rounded up to panels].
void MultiplyPackedTiles(const PackedProductArgs& args, float* partial, Stream stream);
int SlicesOf(const PackedWeights& weight);

// The matrix row by row in `element`: [rows, depth].
void Unpack(Element element, const PackedWeights& weight, void* out, Stream stream);

// The next token behind some rows of logits, chosen as model/llava/sampler.h does it: temperature
// (0: the best), the top_k best (0: all), of these the share top_p, of these what has at least
// min_p of the best one's probability, and of these the one that `uniform` falls on.
struct SampleChoice {
  int32_t row;
  uint32_t top_k;
  float temperature, top_p, min_p;
  double uniform;  // [0, 1)
};
struct SampleArgs {
  const float* logits;  // rows of `width`, `stride` values between them
  int64_t stride;
  int width;
  const SampleChoice* choices;
  int32_t* ids;  // of each choice; -1: a logit is not finite
};
void SampleTokens(const SampleArgs& args, int64_t count, Stream stream);

// Whether a kernel may be brought onto the device while the one before it ends; it waits there
// before it reads what others wrote. For GPUs from sm_90 on; on at first, off by itself where CUDA
// refuses it. Changes no result. For the whole process.
void SetOverlap(bool on);

}  // namespace llava::cuda
