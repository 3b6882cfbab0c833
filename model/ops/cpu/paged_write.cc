// Keys and values of new tokens into their blocks.
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/paged_simd.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

// One token's row of a head, at most kMostHeadDim wide; zeros up to a multiple of 16.
struct alignas(64) Row {
  float data[kMostHeadDim];
};

constexpr int64_t kMostBytes = kMostHeadDim * 2;

// Returns the scale: values are `to` times it. NaN where the row is not finite.
float Quantize(const float* row, int64_t size, int8_t* to) {
  using Bytes = int8_t __attribute__((vector_size(16)));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kTiny = 0x1p-100f;     // rows without a larger value are zero
  constexpr int32_t kInfinity = 0x7F800000;
  // Bits of absolute values are ordered as these are, and above all stand infinity and NaN.
  IntVector most = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    const IntVector bits = reinterpret_cast<IntVector>(Load(row + i)) & 0x7FFFFFFF;
    most = most > bits ? most : bits;
  }
  const int32_t bits = Reduce(most, [](auto a, auto b) { return a > b ? a : b; });
  float peak;
  __builtin_memcpy(&peak, &bits, sizeof(peak));
  float scale = peak / 127;
  const bool empty = bits >= kInfinity || peak < kTiny;
  if (empty) scale = bits < kInfinity ? 0.0f : __builtin_nanf("");
  const float inverse = 127 / peak;
  for (int64_t i = 0; i < size; i += kLanes) {
    Vector v = {};
    if (!empty) v = Load(row + i) * inverse;
    const IntVector q = __builtin_convertvector((v + kRound) - kRound, IntVector);
    const Bytes bytes = __builtin_convertvector(q, Bytes);
    __builtin_memcpy(to + i, &bytes, sizeof(bytes));
  }
  return scale;
}

void Round(const float* row, int64_t size, BFloat16* to) {
  for (int64_t i = 0; i < size; i += kLanes) Store(to + i, Load(row + i));
}

void WriteKeys(KvElement element, const Row& row, int64_t size, int64_t slot,
               const HeadParts& parts) {
  alignas(64) uint8_t bytes[kMostBytes];
  switch (element) {
    case KvElement::kFloat: {
      float* to = reinterpret_cast<float*>(parts.keys) + slot;
      for (int64_t d = 0; d < size; ++d) to[d * kBlockTokens] = row.data[d];
      break;
    }
    case KvElement::kBFloat16: {
      Round(row.data, size, reinterpret_cast<BFloat16*>(bytes));
      for (int64_t d = 0; d < size; d += 2) {
        __builtin_memcpy(parts.keys + (d / 2 * kBlockTokens + slot) * 4, bytes + d * 2, 4);
      }
      break;
    }
    case KvElement::kInt8: {
      parts.key_scales[slot] = Quantize(row.data, size, reinterpret_cast<int8_t*>(bytes));
      for (int64_t d = 0; d < size; ++d) parts.keys[d * kBlockTokens + slot] = bytes[d];
      break;
    }
  }
}

void WriteValues(KvElement element, const Row& row, int64_t size, int64_t slot,
                 const HeadParts& parts) {
  alignas(64) uint8_t bytes[kMostBytes];
  switch (element) {
    case KvElement::kFloat:
      __builtin_memcpy(parts.values + slot * size * 4, row.data, size * 4);
      break;
    case KvElement::kBFloat16: {
      Round(row.data, size, reinterpret_cast<BFloat16*>(bytes));
      uint8_t* to = parts.values + (slot / 2 * size * 2 + slot % 2) * 2;
      for (int64_t d = 0; d < size; ++d) __builtin_memcpy(to + d * 4, bytes + d * 2, 2);
      break;
    }
    case KvElement::kInt8:
      parts.value_scales[slot] = Quantize(row.data, size, reinterpret_cast<int8_t*>(bytes));
      __builtin_memcpy(parts.values + slot * size, bytes, size);
      break;
  }
}

}  // namespace

void WriteKv(const WriteKvTask& task) {
  const KvLayout& layout = *task.blocks.layout;
  const int64_t size = layout.head_dim, half = size / 2;
  Row row;
  __builtin_memset(row.data, 0, sizeof(row.data));
  for (int64_t t = 0; t < task.tokens.count; ++t) {
    const int64_t position = task.tokens.position + t, slot = position % kBlockTokens;
    const float* cosine = task.tokens.cosine + position * half;
    const float* sine = task.tokens.sine + position * half;
    for (int64_t head = 0; head < layout.kv_heads; ++head) {
      const HeadParts parts = PartsOf(task.blocks, position / kBlockTokens, head);
      Turn(task.k + t * task.stride + head * size, cosine, sine, half, 1, row.data);
      WriteKeys(layout.element, row, size, slot, parts);
      __builtin_memcpy(row.data, task.v + t * task.stride + head * size, size * sizeof(float));
      WriteValues(layout.element, row, size, slot, parts);
    }
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
