// Attention in which every query sees all keys, by every instruction set of this processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "model/ops/cpu/scratch.h"
#include "tests/model/ops/gemm_cases.h"

namespace llava::ops::cpu {
namespace {

constexpr int64_t kGap = 3;  // elements between rows

// q, k and v of some heads beside each other, as a product leaves them.
struct Case {
  Element element;
  int64_t tokens, heads, dim;
  int64_t stride = 3 * heads * dim + kGap;
  std::vector<float> values = {};  // as they are seen
  std::vector<uint16_t> halves = {};

  Case(Element element, int64_t tokens, int64_t heads, int64_t dim)
      : element(element), tokens(tokens), heads(heads), dim(dim) {
    values = Random(tokens, stride, static_cast<unsigned>(tokens + dim)).data;
    if (element == Element::kFloat) return;
    for (float& value : values) {
      value = RoundedToBFloat16(value);
      halves.emplace_back();
      std::memcpy(&halves.back(), reinterpret_cast<const char*>(&value) + 2, 2);
    }
  }

  // [tokens, heads * dim]
  std::vector<double> Expected() const {
    std::vector<double> out(tokens * heads * dim), scores(tokens);
    for (int64_t h = 0; h < heads; ++h) {
      const auto at = [&](int64_t token, int64_t part, int64_t d) {
        return double{values[token * stride + (part * heads + h) * dim + d]};
      };
      for (int64_t i = 0; i < tokens; ++i) {
        double peak = -1e30, total = 0;
        for (int64_t j = 0; j < tokens; ++j) {
          scores[j] = 0;
          for (int64_t d = 0; d < dim; ++d) scores[j] += at(i, 0, d) * at(j, 1, d);
          scores[j] /= std::sqrt(static_cast<double>(dim));
          peak = std::max(peak, scores[j]);
        }
        for (double& score : scores) total += score = std::exp(score - peak);
        for (int64_t d = 0; d < dim; ++d) {
          double& sum = out[(i * heads + h) * dim + d];
          for (int64_t j = 0; j < tokens; ++j) sum += scores[j] / total * at(j, 2, d);
        }
      }
    }
    return out;
  }

  // Queries `part` at a time.
  std::vector<float> Found(const Kernels& kernels, int64_t part) const {
    const int64_t bytes = element == Element::kFloat ? 4 : 2, width = heads * dim;
    const auto* in = element == Element::kFloat ? reinterpret_cast<const char*>(values.data())
                                                : reinterpret_cast<const char*>(halves.data());
    std::vector<char> out(tokens * width * bytes);
    Scratch scratch;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t first = 0; first < tokens; first += part) {
        FullAttention task;
        task.element = element;
        task.tokens = tokens;
        task.head_dim = dim;
        task.first = first;
        task.count = std::min(part, tokens - first);
        task.q = {in + h * dim * bytes, stride};
        task.k = {in + (heads + h) * dim * bytes, stride};
        task.v = {in + (2 * heads + h) * dim * bytes, stride};
        task.out = {out.data() + h * dim * bytes, width};
        const int64_t floats = kernels.full_attention_scratch(task);
        kernels.full_attention(task, reinterpret_cast<float*>(scratch.Get(floats * 4)));
      }
    }
    std::vector<float> found(tokens * width);
    for (int64_t i = 0; i < tokens * width; ++i) {
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<char*>(&bits) + (4 - bytes), out.data() + i * bytes, bytes);
      std::memcpy(&found[i], &bits, sizeof(bits));
    }
    return found;
  }
};

TEST(FullAttentionTest, IsSoftmaxOverAllKeys) {
  for (const Kernels& kernels : Available()) {
    for (const Element element : {Element::kFloat, Element::kBFloat16}) {
      for (const auto& [tokens, dim] : {std::pair<int64_t, int64_t>{1, 8},
                                        {5, 24},
                                        {16, 16},
                                        {33, 80},
                                        {50, 7},
                                        {101, 64},
                                        {257, 64},
                                        {130, 32}}) {
        const Case test(element, tokens, 2, dim);
        EXPECT_LT(RelativeError(test.Found(kernels, 1 << 20), test.Expected()),
                  element == Element::kFloat ? 2e-6 : 0.006)
            << kernels.name << " " << tokens << " x " << dim;
      }
    }
  }
}

TEST(FullAttentionTest, QueriesMayBeCutInParts) {
  for (const Kernels& kernels : Available()) {
    for (const Element element : {Element::kFloat, Element::kBFloat16}) {
      const Case test(element, 205, 2, 40);
      EXPECT_EQ(test.Found(kernels, kQueryBlock), test.Found(kernels, 1 << 20)) << kernels.name;
    }
  }
}

TEST(FullAttentionTest, LargeScoresLeaveOneKey) {
  for (const Kernels& kernels : Available()) {
    for (const Element element : {Element::kFloat, Element::kBFloat16}) {
      Case test(element, 40, 1, 32);
      // Keys as far apart as a softmax can tell; queries are keys.
      for (int64_t t = 0; t < 40; ++t) {
        for (int64_t d = 0; d < 32; ++d) {
          const float value = d == t % 32 ? 64.0f * static_cast<float>(1 + t / 32) : 0.0f;
          for (const int64_t part : {0, 1}) {
            const int64_t at = t * test.stride + part * 32 + d;
            test.values[at] = value;
            if (element == Element::kBFloat16) {
              std::memcpy(&test.halves[at], reinterpret_cast<const char*>(&value) + 2, 2);
            }
          }
        }
      }
      const auto found = test.Found(kernels, 1 << 20);
      EXPECT_LT(RelativeError(found, test.Expected()), element == Element::kFloat ? 1e-6 : 0.004)
          << kernels.name;
    }
  }
}

TEST(FullAttentionTest, WhatIsNotANumberIsNotHidden) {
  for (const Kernels& kernels : Available()) {
    for (const Element element : {Element::kFloat, Element::kBFloat16}) {
      Case test(element, 60, 1, 32);
      const float nan = std::nanf("");
      test.values[17 * test.stride] = nan;  // of a query
      if (element == Element::kBFloat16) test.halves[17 * test.stride] = 0x7FC0;
      const auto found = test.Found(kernels, 1 << 20);
      for (int64_t i = 0; i < 60 * 32; ++i) {
        EXPECT_EQ(std::isnan(found[i]), i / 32 == 17) << kernels.name << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace llava::ops::cpu
