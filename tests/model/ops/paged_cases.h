#pragma once

// Sequences over blocks for the tests of paged attention, and a plain float64 attention.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "model/ops/cpu/paged_attention.h"
#include "tests/model/ops/gemm_cases.h"

namespace llava::ops::cpu {

struct Heads {
  int64_t heads, kv_heads, dim;
  int64_t columns() const { return (heads + 2 * kv_heads) * dim; }
};

inline std::string Name(KvElement element) {
  return element == KvElement::kFloat      ? "float"
         : element == KvElement::kBFloat16 ? "bfloat16"
                                           : "int8";
}

struct Angles {
  Matrix cosine, sine;
  Angles(int64_t positions, int64_t dim) : cosine(positions, dim / 2), sine(positions, dim / 2) {
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t i = 0; i < dim / 2; ++i) {
        const double angle = static_cast<double>(p) * std::pow(1e4, -2.0 * i / dim);
        cosine.row(p)[i] = static_cast<float>(std::cos(angle));
        sine.row(p)[i] = static_cast<float>(std::sin(angle));
      }
    }
  }
};

// All blocks of two layers, of which the second is used; every byte 0xFF to begin with, which is
// not a number in all elements.
class BlockPool {
 public:
  BlockPool(const Heads& heads, KvElement element, int64_t blocks, uint8_t fill = 0xFF)
      : layout(element, heads.kv_heads, heads.dim),
        stride(2 * layout.block_bytes),
        memory_(blocks * stride + 64, fill) {
    for (int64_t b = 0; b < blocks; ++b) free_.push_back(static_cast<int32_t>(b));
    std::shuffle(free_.begin(), free_.end(), std::mt19937(7));
  }
  uint8_t* layer() {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + ((at + 63) / 64 * 64 - at) + layout.block_bytes;
  }
  std::vector<uint8_t> bytes() { return {layer() - layout.block_bytes, layer() + Size()}; }
  int32_t Take() {
    const int32_t block = free_.back();
    free_.pop_back();
    return block;
  }

  const KvLayout layout;
  const int64_t stride;

 private:
  int64_t Size() const { return static_cast<int64_t>(memory_.size()) - 64 - layout.block_bytes; }
  std::vector<uint8_t> memory_;
  std::vector<int32_t> free_;
};

// A sequence in the making: `rows` are q, k and v of all its tokens, `out` what came so far.
struct TestSequence {
  Matrix rows;
  Matrix out;
  std::vector<int32_t> blocks;
  int64_t computed = 0;

  TestSequence(const Heads& heads, int64_t tokens, unsigned seed)
      : rows(Random(tokens, heads.columns(), seed)), out(tokens, heads.heads * heads.dim) {}
};

// The next tokens of some sequences: {which, how many}.
struct Part {
  TestSequence* sequence;
  int64_t tokens;
};
inline void Step(PagedAttention& attention, const Heads& heads, BlockPool& pool,
                 const Angles& angles, const std::vector<Part>& parts) {
  constexpr int64_t kGap = 3;
  const int64_t width = heads.heads * heads.dim;
  std::vector<PagedSequence> sequences;
  int64_t total = 0;
  for (const Part& part : parts) {
    TestSequence& sequence = *part.sequence;
    const int64_t end = sequence.computed + part.tokens;
    while (static_cast<int64_t>(sequence.blocks.size()) * kBlockTokens < end) {
      sequence.blocks.push_back(pool.Take());
    }
    sequences.push_back({part.tokens, sequence.computed, sequence.blocks.data()});
    total += part.tokens;
  }
  Matrix in(total, heads.columns() + kGap), out(total, width + kGap);
  int64_t row = 0;
  for (const Part& part : parts) {
    for (int64_t t = 0; t < part.tokens; ++t, ++row) {
      std::memcpy(in.row(row), part.sequence->rows.row(part.sequence->computed + t),
                  heads.columns() * sizeof(float));
    }
  }
  PagedAttention::Call call;
  call.layout = &pool.layout;
  call.layer = pool.layer();
  call.block_stride = pool.stride;
  call.heads = heads.heads;
  call.sequences = sequences;
  call.q = in.data.data();
  call.k = call.q + width;
  call.v = call.k + heads.kv_heads * heads.dim;
  call.stride = in.columns;
  call.cosine = angles.cosine.data.data();
  call.sine = angles.sine.data.data();
  call.out = out.data.data();
  call.out_stride = out.columns;
  attention.Run(call);
  row = 0;
  for (const Part& part : parts) {
    for (int64_t t = 0; t < part.tokens; ++t, ++row) {
      std::memcpy(part.sequence->out.row(part.sequence->computed++), out.row(row),
                  width * sizeof(float));
    }
  }
}

// A row of keys or values as a block holds it.
inline void Stored(KvElement element, float* row, int64_t size) {
  if (element == KvElement::kFloat) return;
  float most = 0;
  for (int64_t i = 0; i < size; ++i) most = std::max(most, std::abs(row[i]));
  for (int64_t i = 0; i < size; ++i) {
    row[i] = element == KvElement::kBFloat16 ? RoundedToBFloat16(row[i])
             : most == 0                     ? 0
                                             : std::nearbyint(row[i] * (127 / most)) * (most / 127);
  }
}

// What the sequence's `out` should be, with keys and values as blocks hold them; of `kFloat`
// exactly.
inline std::vector<double> Expected(const Heads& heads, KvElement element, const Angles& angles,
                                    const TestSequence& sequence) {
  const int64_t tokens = sequence.rows.rows, half = heads.dim / 2;
  Matrix turned = sequence.rows;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < heads.heads + heads.kv_heads; ++head) {
      float* at = turned.row(t) + head * heads.dim;
      for (int64_t i = 0; i < half; ++i) {
        const float a = at[i], b = at[i + half];
        const float c = angles.cosine.row(t)[i], s = angles.sine.row(t)[i];
        at[i] = a * c - b * s;
        at[i + half] = b * c + a * s;
      }
    }
    for (int64_t head = heads.heads; head < heads.heads + 2 * heads.kv_heads; ++head) {
      Stored(element, turned.row(t) + head * heads.dim, heads.dim);
    }
  }
  std::vector<double> out(tokens * heads.heads * heads.dim), weights(tokens);
  const int64_t group = heads.heads / heads.kv_heads;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < heads.heads; ++head) {
      const int64_t k = (heads.heads + head / group) * heads.dim,
                    v = k + heads.kv_heads * heads.dim;
      double peak = -INFINITY, total = 0;
      for (int64_t key = 0; key <= t; ++key) {
        double dot = 0;
        for (int64_t d = 0; d < heads.dim; ++d) {
          dot += double{turned.row(t)[head * heads.dim + d]} * turned.row(key)[k + d];
        }
        weights[key] = dot / std::sqrt(static_cast<double>(heads.dim));
        peak = std::max(peak, weights[key]);
      }
      for (int64_t key = 0; key <= t; ++key) {
        total += weights[key] = std::exp(weights[key] - peak);
      }
      double* to = &out[(t * heads.heads + head) * heads.dim];
      for (int64_t key = 0; key <= t; ++key) {
        for (int64_t d = 0; d < heads.dim; ++d) {
          to[d] += weights[key] / total * turned.row(key)[v + d];
        }
      }
    }
  }
  return out;
}

}  // namespace llava::ops::cpu
