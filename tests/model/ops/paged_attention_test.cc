// Attention over keys and values in blocks, by every instruction set of this processor.
#include "model/ops/cpu/paged_attention.h"

#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/ops/paged_cases.h"

namespace llava::ops::cpu {
namespace {

using ::testing::HasSubstr;

constexpr KvElement kElements[] = {KvElement::kFloat, KvElement::kBFloat16, KvElement::kInt8};
constexpr Heads kHeads[] = {{8, 1, 64}, {2, 2, 128}, {6, 2, 16}, {3, 3, 50},
                            {9, 3, 18}, {1, 1, 256}, {4, 2, 80}, {20, 1, 32}};

// Calls test(kernels, element) for all of them.
template <typename Test>
void ForAll(const Test& test) {
  for (const Kernels& kernels : Available()) {
    for (const KvElement element : kElements) {
      SCOPED_TRACE(std::string(kernels.name) + " " + Name(element));
      test(kernels, element);
    }
  }
}

std::string Describe(const Heads& heads) {
  return std::to_string(heads.heads) + " heads, " + std::to_string(heads.kv_heads) + " x " +
         std::to_string(heads.dim);
}

// Of the whole sequence in one step, alone.
Matrix Whole(const Kernels& kernels, const Heads& heads, KvElement element, const Angles& angles,
             TestSequence sequence) {
  ThreadPool alone(1);
  PagedAttention attention(alone, kernels);
  BlockPool blocks(heads, element, sequence.rows.rows / kBlockTokens + 1);
  sequence.blocks.clear();
  sequence.computed = 0;
  Step(attention, heads, blocks, angles, {{&sequence, sequence.rows.rows}});
  return sequence.out;
}

void ExpectSame(const Matrix& found, const Matrix& expected, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    ASSERT_EQ(0, std::memcmp(found.row(i), expected.row(i), found.columns * sizeof(float)))
        << "row " << i;
  }
}

TEST(PagedAttentionTest, IsAttention) {
  ThreadPool pool(2);
  ForAll([&](const Kernels& kernels, KvElement element) {
    for (const Heads& heads : kHeads) {
      const Angles angles(600, heads.dim);
      for (const int64_t tokens : {1, 2, 15, 16, 17, 33, 100, 521}) {
        if (tokens > 200 && heads.heads * heads.dim > 300) continue;
        SCOPED_TRACE(Describe(heads) + ", " + std::to_string(tokens) + " tokens");
        PagedAttention attention(pool, kernels);
        BlockPool blocks(heads, element, 40);
        TestSequence sequence(heads, tokens, static_cast<unsigned>(tokens));
        Step(attention, heads, blocks, angles, {{&sequence, tokens}});
        const auto expected = Expected(heads, element, angles, sequence);
        // Tiles round queries and weights to bfloat16.
        const bool rounded = element == KvElement::kBFloat16 && kernels.name == "amx";
        EXPECT_LT(RelativeError(sequence.out.data, expected), rounded ? 6e-3 : 2e-6);
      }
    }
  });
}

TEST(PagedAttentionTest, ElementsLoseLittle) {
  ThreadPool pool(2);
  constexpr Heads kShape{8, 2, 64};
  const Angles angles(300, kShape.dim);
  ForAll([&](const Kernels& kernels, KvElement element) {
    TestSequence sequence(kShape, 300, 5);
    const Matrix out = Whole(kernels, kShape, element, angles, sequence);
    const double error =
        RelativeError(out.data, Expected(kShape, KvElement::kFloat, angles, sequence));
    EXPECT_LT(error, element == KvElement::kFloat      ? 2e-6
                     : element == KvElement::kBFloat16 ? 0.008
                                                       : 0.015);
    EXPECT_GT(error, element == KvElement::kFloat ? 0 : 1e-4) << "nothing was rounded";
  });
}

TEST(PagedAttentionTest, ARowIsTheSameHoweverItsSequenceIsCut) {
  ForAll([&](const Kernels& kernels, KvElement element) {
    std::mt19937 random(3);
    for (const Heads& heads : kHeads) {
      SCOPED_TRACE(Describe(heads));
      constexpr int64_t kTokens = 580;
      const Angles angles(kTokens, heads.dim);
      const TestSequence source(heads, kTokens, 11);
      const Matrix whole = Whole(kernels, heads, element, angles, source);
      for (int64_t threads = 1; threads <= 4; ++threads) {
        ThreadPool pool(static_cast<int>(threads));
        PagedAttention attention(pool, kernels);
        BlockPool blocks(heads, element, kTokens / kBlockTokens + 1);
        TestSequence sequence = source;
        // Chunks of all sizes; with one thread mostly single tokens.
        std::geometric_distribution<int64_t> size(
            threads == 1 ? 0.7 : 0.02 * static_cast<double>(threads));
        while (sequence.computed < kTokens) {
          const int64_t tokens = std::min(size(random) + 1, kTokens - sequence.computed);
          Step(attention, heads, blocks, angles, {{&sequence, tokens}});
        }
        SCOPED_TRACE(std::to_string(threads) + " threads");
        ExpectSame(sequence.out, whole, kTokens);
      }
    }
  });
}

TEST(PagedAttentionTest, ARowIsTheSameInAnyCompany) {
  ForAll([&](const Kernels& kernels, KvElement element) {
    std::mt19937 random(4);
    for (const Heads& heads : {kHeads[0], kHeads[1], kHeads[4]}) {
      SCOPED_TRACE(Describe(heads));
      const Angles angles(1400, heads.dim);
      const int64_t lengths[] = {1, 40, 513, 1300, 15, 16, 200};
      std::vector<TestSequence> sequences;
      std::vector<Matrix> alone;
      for (const int64_t tokens : lengths) {
        sequences.emplace_back(heads, tokens, static_cast<unsigned>(tokens));
        alone.push_back(Whole(kernels, heads, element, angles, sequences.back()));
      }
      ThreadPool pool(3);
      PagedAttention attention(pool, kernels);
      BlockPool blocks(heads, element, 200);
      while (true) {
        std::vector<Part> parts;
        for (TestSequence& sequence : sequences) {
          const int64_t left = sequence.rows.rows - sequence.computed;
          const int64_t sizes[] = {0, 1, 7, 150, 400};
          if (left > 0) parts.push_back({&sequence, std::min(left, sizes[random() % 5])});
        }
        if (parts.empty()) break;
        std::shuffle(parts.begin(), parts.end(), random);
        Step(attention, heads, blocks, angles, parts);
      }
      for (size_t i = 0; i < sequences.size(); ++i) {
        SCOPED_TRACE("sequence " + std::to_string(i));
        ExpectSame(sequences[i].out, alone[i], lengths[i]);
      }
    }
  });
}

TEST(PagedAttentionTest, WritesTheNewTokensAndNothingElse) {
  ThreadPool pool(2);
  constexpr int64_t kBefore = 21, kTokens = 30;
  ForAll([&](const Kernels& kernels, KvElement element) {
    for (const Heads& heads : kHeads) {
      SCOPED_TRACE(Describe(heads));
      const Angles angles(kBefore + kTokens, heads.dim);
      // A byte that is the same whatever was there before has been written.
      std::vector<uint8_t> written[2][2];
      for (const int when : {0, 1}) {
        for (const int fill : {0, 1}) {
          PagedAttention attention(pool, kernels);
          BlockPool blocks(heads, element, 9, fill == 0 ? 0x00 : 0xFF);
          TestSequence other(heads, 40, 2), sequence(heads, kBefore + kTokens, 1);
          other.blocks = {blocks.Take(), blocks.Take(), blocks.Take()};
          Step(attention, heads, blocks, angles, {{&sequence, kBefore}});
          if (when == 1) Step(attention, heads, blocks, angles, {{&sequence, kTokens}});
          written[when][fill] = blocks.bytes();
        }
      }
      int64_t before = 0, after = 0;
      for (size_t i = 0; i < written[0][0].size(); ++i) {
        const bool first = written[0][0][i] == written[0][1][i];
        before += first;
        after += written[1][0][i] == written[1][1][i];
        if (first) {
          ASSERT_EQ(written[0][0][i], written[1][0][i]) << "byte " << i;
        }
      }
      const int64_t bytes = element == KvElement::kFloat      ? heads.dim * 4
                            : element == KvElement::kBFloat16 ? heads.dim * 2
                                                              : heads.dim + 4;
      EXPECT_EQ(before, kBefore * 2 * heads.kv_heads * bytes);
      EXPECT_EQ(after, (kBefore + kTokens) * 2 * heads.kv_heads * bytes);
    }
  });
}

TEST(PagedAttentionTest, WhatIsNotFiniteStaysInRowsThatSeeIt) {
  ThreadPool pool(2);
  ForAll([&](const Kernels& kernels, KvElement element) {
    for (const Heads& heads : {kHeads[0], kHeads[1], kHeads[4]}) {
      constexpr int64_t kTokens = 90;
      const Angles angles(kTokens, heads.dim);
      const int64_t k = heads.heads * heads.dim, v = k + heads.kv_heads * heads.dim;
      for (const int64_t column : {k, v}) {
        for (const int64_t at : {0, 31, 38, 64}) {
          TestSequence sequence(heads, kTokens, 1);
          const Matrix clean = Whole(kernels, heads, element, angles, sequence);
          sequence.rows.row(at)[column] = std::nanf("");
          sequence.rows.row(at)[column + 1] = std::numeric_limits<float>::infinity();
          const Matrix out = Whole(kernels, heads, element, angles, sequence);
          ExpectSame(out, clean, at);
          for (int64_t i = at; i < kTokens; ++i) {
            ASSERT_TRUE(std::isnan(out.row(i)[0])) << "row " << i << " sees row " << at;
          }
        }
      }
    }
  });
}

TEST(PagedAttentionTest, LargeScoresPickOneValue) {
  ThreadPool pool(1);
  constexpr Heads kShape{2, 1, 32};
  constexpr int64_t kTokens = 700;
  Angles angles(kTokens, kShape.dim);
  for (float& value : angles.cosine.data) value = 1;
  for (float& value : angles.sine.data) value = 0;
  ForAll([&](const Kernels& kernels, KvElement element) {
    TestSequence sequence(kShape, kTokens, 1);
    for (int64_t i = 0; i < kTokens; ++i) {
      for (int64_t d = 0; d < 3 * kShape.dim; ++d) {
        const bool key = d >= 2 * kShape.dim;
        sequence.rows.row(i)[d] = key && i == 530 ? 300.0f : key ? -300.0f : 300.0f;
      }
    }
    const Matrix out = Whole(kernels, kShape, element, angles, sequence);
    for (int64_t i = 530; i < kTokens; ++i) {
      for (int64_t d = 0; d < kShape.dim; ++d) {
        ASSERT_NEAR(out.row(i)[d], sequence.rows.row(530)[3 * kShape.dim + d],
                    element == KvElement::kFloat ? 1e-6 : 0.02);
      }
    }
  });
}

// One step of 5 and 1 tokens, as a Call to change.
struct Plain {
  static constexpr Heads kShape{4, 2, 32};
  static constexpr int64_t kTokens = 6, kWidth = kShape.heads * kShape.dim;
  Angles angles{8, kShape.dim};
  Matrix in = Random(kTokens, kShape.columns(), 1), out{kTokens, kWidth};
  BlockPool blocks{kShape, KvElement::kFloat, 2};
  int32_t tables[2] = {1, 0};
  std::vector<PagedSequence> sequences = {{5, 0, tables}, {1, 0, tables + 1}};
  PagedAttention::Call call;

  Plain() {
    call.layout = &blocks.layout;
    call.layer = blocks.layer();
    call.block_stride = blocks.stride;
    call.heads = kShape.heads;
    call.sequences = sequences;
    call.q = in.data.data();
    call.k = call.q + kWidth;
    call.v = call.k + kShape.kv_heads * kShape.dim;
    call.stride = in.columns;
    call.cosine = angles.cosine.data.data();
    call.sine = angles.sine.data.data();
    call.out = out.data.data();
    call.out_stride = out.columns;
  }
};

TEST(PagedAttentionTest, RowsOfTheResultMayLieApart) {
  ThreadPool pool(2);
  for (const Kernels& kernels : Available()) {
    PagedAttention attention(pool, kernels);
    Plain plain;
    attention.Run(plain.call);
    constexpr int64_t kStride = Plain::kWidth + 2;
    std::vector<float> apart(Plain::kTokens * kStride, -7);
    plain.call.out = apart.data();
    plain.call.out_stride = kStride;
    attention.Run(plain.call);
    for (int64_t i = 0; i < Plain::kTokens; ++i) {
      for (int64_t j = 0; j < kStride; ++j) {
        const float expected = j < Plain::kWidth ? plain.out.row(i)[j] : -7;
        ASSERT_EQ(apart[i * kStride + j], expected) << i << " " << j;
      }
    }
  }
}

TEST(PagedAttentionTest, NoRowsAreNoWork) {
  ThreadPool pool(2);
  PagedAttention attention(pool);
  Plain plain;
  const auto before = plain.blocks.bytes();
  const PagedSequence none[] = {{0, 3, nullptr}, {0, 0, plain.tables}};
  plain.call.sequences = none;
  attention.Run(plain.call);
  plain.call.sequences = {};
  plain.call.q = nullptr;
  attention.Run(plain.call);
  EXPECT_EQ(plain.blocks.bytes(), before);
}

TEST(PagedAttentionTest, MisuseSaysWhy) {
  ThreadPool pool(2);
  PagedAttention attention(pool);
  const auto refused = [&](const std::string& text, const auto& change) {
    Plain plain;
    change(plain);
    const auto before = plain.blocks.bytes();
    try {
      attention.Run(plain.call);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(), HasSubstr(text));
    }
    EXPECT_EQ(plain.blocks.bytes(), before);
  };
  refused("no layout", [](Plain& plain) { plain.call.layout = nullptr; });
  refused("5 query heads share 2", [](Plain& plain) { plain.call.heads = 5; });
  refused("0 query heads", [](Plain& plain) { plain.call.heads = 0; });
  refused("without blocks", [](Plain& plain) { plain.sequences[1].blocks = nullptr; });
  refused("-1 rows behind 0", [](Plain& plain) { plain.sequences[0].rows = -1; });
  refused("1 rows behind -2", [](Plain& plain) { plain.sequences[1].computed = -2; });
  refused("bytes every 64", [](Plain& plain) { plain.call.block_stride = 64; });
  refused("no data", [](Plain& plain) { plain.call.v = nullptr; });
  refused("no data", [](Plain& plain) { plain.call.out = nullptr; });
  refused("every 100 and 128", [](Plain& plain) { plain.call.stride = 100; });
  refused("every 256 and 127", [](Plain& plain) { plain.call.out_stride = 127; });
  for (const int64_t dim : {0, 14, 63, 258}) {
    EXPECT_THROW(KvLayout(KvElement::kInt8, 2, dim), std::invalid_argument) << dim;
  }
  EXPECT_THROW(KvLayout(KvElement::kInt8, 0, 64), std::invalid_argument);
}

TEST(KvLayoutTest, BlocksAreWholeCacheLines) {
  EXPECT_EQ(KvLayout(KvElement::kFloat, 4, 64).block_bytes, 2 * 16 * 4 * 64 * 4);
  EXPECT_EQ(KvLayout(KvElement::kBFloat16, 4, 64).block_bytes, 2 * 16 * 4 * 64 * 2);
  EXPECT_EQ(KvLayout(KvElement::kInt8, 4, 64).block_bytes, 2 * 16 * 4 * (64 + 4));
  for (int64_t dim = 16; dim <= 256; dim += 2) {
    for (const KvElement element : kElements) {
      EXPECT_EQ(KvLayout(element, 3, dim).block_bytes % 64, 0) << Name(element) << " " << dim;
    }
  }
}

}  // namespace
}  // namespace llava::ops::cpu
