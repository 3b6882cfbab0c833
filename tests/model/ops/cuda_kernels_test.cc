// The CUDA kernels against LibTorch's operations, on a GPU or emulated (kernel_device.h).

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/ops/cuda/kernels.h"
#include "model/ops/cuda/runtime.h"
#include "model/ops/ops.h"
#include "tests/model/ops/kernel_device.h"

namespace llava::cuda {
namespace {

struct Case {
  at::ScalarType dtype;
  Element element;
  double bound;  // relative to the largest value
};
const Case kCases[] = {{at::kFloat, Element::kFloat, 5e-6},
                       {at::kBFloat16, Element::kBFloat16, 1e-2}};

Stream TheStream() { return CurrentStream(KernelDevice()); }

at::Tensor Random(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::kFloat).to(dtype).to(KernelDevice());
}

at::Tensor Ints(const std::vector<int32_t>& values) {
  return at::tensor(values, at::kInt).to(KernelDevice());
}

// `found` may be off by `bound` of the largest expected value.
void ExpectNear(const at::Tensor& found, const at::Tensor& expected, double bound) {
  const at::Tensor x = found.to(at::kCPU, at::kDouble), y = expected.to(at::kCPU, at::kDouble);
  ASSERT_EQ(x.sizes(), y.sizes());
  ASSERT_TRUE(at::isfinite(x).all().item<bool>());
  EXPECT_LE((x - y).abs().max().item<double>(), bound * y.abs().max().item<double>());
}

// Runs `kernel`, which writes into a copy of each of `outs`, with the threads in either order;
// returns what was written.
template <class Kernel>
std::vector<at::Tensor> InAnyOrder(const std::vector<at::Tensor>& outs, const Kernel& kernel) {
  std::vector<std::vector<at::Tensor>> results;
  for (const bool backwards : {false, true}) {
    std::vector<at::Tensor> copies;
    for (const at::Tensor& out : outs) copies.push_back(out.clone());
    RunThreadsBackwards(backwards);
    kernel(copies);
    RunThreadsBackwards(false);
    for (at::Tensor& copy : copies) copy = copy.cpu();
    results.push_back(copies);
  }
  for (size_t i = 0; i < outs.size(); ++i) {
    EXPECT_TRUE(at::equal(results[0][i], results[1][i])) << "output " << i;
  }
  return results[0];
}

using AddRmsNormTest = KernelTest;

TEST_F(AddRmsNormTest, IsTheSumAndItsNorm) {
  for (const Case& c : kCases) {
    for (const int64_t width : {1, 7, 36, 64, 1000, 2048, 4096, 5120}) {
      for (const bool with_delta : {false, true}) {
        SCOPED_TRACE(std::to_string(width) + (with_delta ? " with" : " without") + " delta");
        const int64_t rows = width < 1000 ? 5 : 2;
        const at::Tensor x = Random({rows, width}, c.dtype, 1),
                         delta = Random({rows, width}, c.dtype, 2);
        const at::Tensor weight = Random({width}, c.dtype, 3);
        const auto found = InAnyOrder({x, at::empty_like(x)}, [&](std::vector<at::Tensor>& out) {
          AddRmsNorm(c.element,
                     {.residual = out[0].data_ptr(),
                      .delta = with_delta ? delta.data_ptr() : nullptr,
                      .weight = weight.data_ptr(),
                      .out = out[1].data_ptr(),
                      .width = static_cast<int>(width),
                      .eps = 1e-5f},
                     rows, TheStream());
        });
        const at::Tensor sum = with_delta ? x + delta : x;
        EXPECT_TRUE(at::equal(found[0], sum.cpu()));
        ExpectNear(found[1], ops::RmsNorm(sum, weight, 1e-5), c.bound);
      }
    }
  }
}

using SwiGluTest = KernelTest;

TEST_F(SwiGluTest, GatesTheSecondHalfWithTheFirst) {
  for (const Case& c : kCases) {
    for (const int64_t width : {1, 50, 344, 2048, 11008}) {
      SCOPED_TRACE(width);
      const int64_t rows = width < 1000 ? 5 : 2;
      const at::Tensor gate_up = Random({rows, 2 * width}, c.dtype, 1) * 4;
      const at::Tensor out = at::full({rows, width}, NAN, gate_up.options());
      const auto found = InAnyOrder({out}, [&](std::vector<at::Tensor>& outs) {
        SwiGlu(c.element,
               {.gate_up = gate_up.data_ptr(),
                .out = outs[0].data_ptr(),
                .width = static_cast<int>(width)},
               rows, TheStream());
      });
      ExpectNear(
          found[0],
          ops::reference::SwiGlu(gate_up.narrow(1, 0, width), gate_up.narrow(1, width, width)),
          c.bound);
    }
  }
}

using QuickGeluTest = KernelTest;

TEST_F(QuickGeluTest, IsTheTowersActivation) {
  for (const Case& c : kCases) {
    for (const int64_t count : {1, 50, 4096, 5000}) {
      SCOPED_TRACE(count);
      const at::Tensor x = Random({count}, c.dtype, 1) * 4;
      const auto found = InAnyOrder({x}, [&](std::vector<at::Tensor>& outs) {
        QuickGelu(c.element, {.x = outs[0].data_ptr(), .out = outs[0].data_ptr(), .count = count},
                  TheStream());
      });
      ExpectNear(found[0], ops::Activate(x.to(at::kCPU, at::kFloat), Activation::kQuickGelu),
                 c.bound);
    }
  }
}

using RopeToCacheTest = KernelTest;

TEST_F(RopeToCacheTest, TurnsInPlaceAndWritesOnlyItsSlots) {
  struct Heads {
    int heads, kv_heads, head_dim;
  };
  for (const Case& c : kCases) {
    for (const auto& [heads, kv_heads, head_dim] :
         {Heads{6, 2, 10}, Heads{1, 1, 2}, Heads{4, 4, 32}, Heads{8, 2, 64}, Heads{3, 3, 72},
          Heads{32, 32, 128}, Heads{5, 1, 256}}) {
      SCOPED_TRACE(head_dim);
      const int64_t rows = 4, slots = 48;
      const std::vector<int32_t> positions = {0, 17, 299, 3}, places = {40, 3, 16, 47};
      const at::Tensor qkv = Random({rows, heads + 2 * kv_heads, head_dim}, c.dtype, 1);
      const at::Tensor k_cache = Random({slots, kv_heads, head_dim}, c.dtype, 2);
      const at::Tensor v_cache = Random({slots, kv_heads, head_dim}, c.dtype, 3);
      const ops::RopeTable all = ops::MakeRope(
          at::arange(300, at::TensorOptions(KernelDevice()).dtype(at::kLong)), head_dim, 10000);
      const at::Tensor cos = all.cos.contiguous(), sin = all.sin.contiguous();
      const at::Tensor at_positions = Ints(positions), at_slots = Ints(places);
      const auto found = InAnyOrder({qkv, k_cache, v_cache}, [&](std::vector<at::Tensor>& out) {
        RopeToCache(c.element,
                    {.qkv = out[0].data_ptr(),
                     .cos = cos.data_ptr<float>(),
                     .sin = sin.data_ptr<float>(),
                     .positions = at_positions.data_ptr<int32_t>(),
                     .slots = at_slots.data_ptr<int32_t>(),
                     .k_cache = out[1].data_ptr(),
                     .v_cache = out[2].data_ptr(),
                     .num_heads = heads,
                     .num_kv_heads = kv_heads,
                     .head_dim = head_dim},
                    rows, TheStream());
      });
      const ops::RopeTable rope = {cos.index_select(0, at_positions),
                                   sin.index_select(0, at_positions)};
      const at::Tensor q = ops::ApplyRope(qkv.narrow(1, 0, heads), rope);
      const at::Tensor k = ops::ApplyRope(qkv.narrow(1, heads, kv_heads), rope);
      const at::Tensor v = qkv.narrow(1, heads + kv_heads, kv_heads);
      ExpectNear(found[0], at::cat({q, k, v}, 1), c.bound);
      // The cache holds the same bits, and nothing else of it has changed.
      const at::Tensor index = at::tensor(places, at::kLong);
      EXPECT_TRUE(at::equal(
          found[1], k_cache.cpu().index_copy(0, index, found[0].narrow(1, heads, kv_heads))));
      EXPECT_TRUE(at::equal(found[2], v_cache.cpu().index_copy(0, index, v.cpu())));
    }
  }
}

class PagedAttentionTest : public KernelTest {
 protected:
  static constexpr int64_t kBlocks = 64;

  struct Heads {
    int heads, kv_heads, head_dim;
  };
  PagedAttentionTest() {
    // Scattered, without repetition.
    for (int32_t i = 0; i < kBlocks; ++i) order_.push_back(i * 37 % static_cast<int32_t>(kBlocks));
  }

  // Attention of one query for each length, whose blocks follow each other in `order_` from
  // `first` on. Rows of q and out that nobody asked for stay as they are.
  at::Tensor Run(const Case& c, const Heads& h, const at::Tensor& q, const at::Tensor& k_cache,
                 const at::Tensor& v_cache, const std::vector<int32_t>& rows,
                 const std::vector<int32_t>& lengths, const std::vector<int>& first, int splits,
                 bool beside_streams = false) {
    const int width = splits * kSplitTokens / kBlockTokens;
    std::vector<int32_t> tables;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int blocks = (lengths[i] + kBlockTokens - 1) / kBlockTokens;
      for (int b = 0; b < width; ++b) {
        // Behind its last block a sequence has none: an index that must not be read.
        tables.push_back(b < blocks ? order_[first[i] + b] : 1 << 30);
      }
    }
    const at::Tensor at_rows = Ints(rows), at_lengths = Ints(lengths), at_tables = Ints(tables);
    const at::Tensor partial =
        at::full({static_cast<int64_t>(lengths.size()), h.heads, splits, h.head_dim + 2}, NAN,
                 at::TensorOptions(KernelDevice()).dtype(at::kFloat));
    const at::Tensor out = at::full({q.size(0), h.heads, h.head_dim}, 77, q.options());
    return InAnyOrder({out}, [&](std::vector<at::Tensor>& outs) {
      PagedAttention(c.element,
                     {.q = q.data_ptr(),
                      .q_stride = q.stride(0),
                      .k_cache = k_cache.data_ptr(),
                      .v_cache = v_cache.data_ptr(),
                      .rows = at_rows.data_ptr<int32_t>(),
                      .lengths = at_lengths.data_ptr<int32_t>(),
                      .tables = at_tables.data_ptr<int32_t>(),
                      .table_stride = width,
                      .num_heads = h.heads,
                      .num_kv_heads = h.kv_heads,
                      .head_dim = h.head_dim,
                      .scale = 1.0f / std::sqrt(static_cast<float>(h.head_dim)),
                      .splits = splits,
                      .beside_streams = beside_streams,
                      .partial = partial.data_ptr<float>(),
                      .out = outs[0].data_ptr()},
                     static_cast<int64_t>(lengths.size()), TheStream());
    })[0];
  }

  std::vector<int32_t> order_;
};

TEST_F(PagedAttentionTest, IsAttentionOverTheBlocksInOrder) {
  for (const Case& c : kCases) {
    for (const Heads& h : {Heads{6, 2, 10}, Heads{2, 2, 2}, Heads{4, 4, 32}, Heads{10, 2, 64},
                           Heads{3, 3, 72}, Heads{8, 8, 128}, Heads{8, 1, 128}, Heads{4, 2, 200}}) {
      SCOPED_TRACE(std::to_string(h.heads) + " over " + std::to_string(h.kv_heads) + " of " +
                   std::to_string(h.head_dim));
      // q is the front of a wider matrix, as in a fused product.
      const at::Tensor qkv = Random({6, h.heads + 2 * h.kv_heads, h.head_dim}, c.dtype, 1) * 2;
      const at::Tensor k_cache =
          Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 2);
      const at::Tensor v_cache =
          Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 3);
      const std::vector<int32_t> rows = {4, 0, 1, 5}, lengths = {1, 17, 128, 391};
      const std::vector<int> first = {0, 3, 8, 20};
      const at::Tensor found = Run(c, h, qkv, k_cache, v_cache, rows, lengths, first, 4);
      for (size_t i = 0; i < rows.size(); ++i) {
        SCOPED_TRACE(lengths[i]);
        const int64_t blocks = (lengths[i] + kBlockTokens - 1) / kBlockTokens;
        const at::Tensor index = at::tensor(
            std::vector<int32_t>(order_.begin() + first[i], order_.begin() + first[i] + blocks),
            at::kLong);
        const auto seen = [&](const at::Tensor& cache) {
          return cache.cpu()
              .to(at::kFloat)
              .view({kBlocks, kBlockTokens, h.kv_heads, h.head_dim})
              .index_select(0, index)
              .flatten(0, 1)
              .narrow(0, 0, lengths[i]);
        };
        const at::Tensor q = qkv.cpu().to(at::kFloat).narrow(0, rows[i], 1).narrow(1, 0, h.heads);
        ExpectNear(found[rows[i]], ops::Attention(q, seen(k_cache), seen(v_cache), true)[0],
                   c.bound);
      }
      for (const int64_t other : {2, 3}) {
        EXPECT_EQ((found[other] - 77).abs().max().item<float>(), 0) << "row " << other;
      }
    }
  }
}

TEST_F(PagedAttentionTest, DoesNotDependOnTheBatch) {
  const Heads h{8, 2, 64};
  for (const Case& c : kCases) {
    const at::Tensor q = Random({3, h.heads, h.head_dim}, c.dtype, 1);
    const at::Tensor k_cache = Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 2);
    const at::Tensor v_cache = Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 3);
    const at::Tensor together =
        Run(c, h, q, k_cache, v_cache, {0, 1, 2}, {300, 5, 129}, {0, 20, 30}, 8);
    const at::Tensor alone = Run(c, h, q, k_cache, v_cache, {0}, {300}, {0}, 3);
    EXPECT_TRUE(at::equal(together[0], alone[0]));
  }
}

TEST_F(PagedAttentionTest, DoesNotDependOnHowManyThereAre) {
  // Enough for blocks of half the threads, and each by itself.
  for (const Case& c : kCases) {
    for (const Heads& h : {Heads{32, 32, 16}, Heads{32, 32, 72}, Heads{64, 16, 64},
                           Heads{32, 32, 136}, Heads{32, 32, 6}}) {
      SCOPED_TRACE(h.head_dim);
      const int splits = h.kv_heads == 16 ? 8 : 4;
      const std::vector<int32_t> lengths = {300, 5, 129, 64, 512};
      const std::vector<int> first = {0, 20, 24, 30, 32};
      const at::Tensor q = Random({5, h.heads, h.head_dim}, c.dtype, 1);
      const at::Tensor k_cache =
          Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 2);
      const at::Tensor v_cache =
          Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 3);
      ASSERT_GT(h.kv_heads * splits * 5, 512);
      const at::Tensor together =
          Run(c, h, q, k_cache, v_cache, {0, 1, 2, 3, 4}, lengths, first, splits);
      for (int i = 0; i < 5; ++i) {
        const at::Tensor alone = Run(c, h, q, k_cache, v_cache, {i}, {lengths[i]}, {first[i]}, 4);
        EXPECT_TRUE(at::equal(together[i], alone[i])) << i;
        // Half the threads from one block a multiprocessor on.
        const at::Tensor small = Run(c, h, q, k_cache, v_cache, {i}, {lengths[i]}, {first[i]}, 8,
                                     /*beside_streams=*/true);
        EXPECT_TRUE(at::equal(small[i], alone[i])) << i;
      }
    }
  }
}

TEST_F(PagedAttentionTest, LargeScoresDoNotOverflow) {
  const Heads h{4, 4, 64};
  const Case& c = kCases[0];
  const at::Tensor q = Random({1, h.heads, h.head_dim}, c.dtype, 1) * 1000;
  const at::Tensor k_cache = Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 2);
  const at::Tensor v_cache = Random({kBlocks * kBlockTokens, h.kv_heads, h.head_dim}, c.dtype, 3);
  const at::Tensor found = Run(c, h, q, k_cache, v_cache, {0}, {1000}, {0}, 8);
  EXPECT_TRUE(at::isfinite(found).all().item<bool>());
  EXPECT_LE(found.abs().max().item<float>(), v_cache.abs().max().item<float>());
}

TEST_F(PagedAttentionTest, RefusesHeadsItHasNoKernelFor) {
  EXPECT_TRUE(HasPagedAttention(256));
  EXPECT_FALSE(HasPagedAttention(264));
  EXPECT_FALSE(HasPagedAttention(66));
  EXPECT_FALSE(HasPagedAttention(9));
  PagedAttentionArgs args{};
  args.num_heads = args.num_kv_heads = args.splits = 1;
  args.head_dim = 9;
  EXPECT_THROW(PagedAttention(Element::kFloat, args, 1, TheStream()), std::invalid_argument);
}

using MultiplyRowTest = KernelTest;

TEST_F(MultiplyRowTest, IsTheProduct) {
  struct Shape {
    int64_t depth, rows;
  };
  // Depths that fill steps and that do not, rows for one turn of the blocks and for several (also
  // on a large GPU), an odd last one.
  for (const auto& [depth, rows] : {Shape{8, 1}, Shape{200, 17}, Shape{256, 48}, Shape{1024, 131},
                                    Shape{1384, 64}, Shape{4096, 35}, Shape{9736, 9},
                                    Shape{kRowMostDepth, 18}, Shape{264, 4501}, Shape{264, 4700}}) {
    for (const bool gated : {false, true}) {
      if (gated && rows % 2 != 0) continue;
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(depth) + (gated ? " gated" : ""));
      const at::Tensor x = Random({1, depth}, at::kBFloat16, 1);
      const at::Tensor weight = Random({rows, depth}, at::kBFloat16, 2) / (gated ? 20 : 1);
      at::Tensor expected = at::linear(x.cpu().to(at::kDouble), weight.cpu().to(at::kDouble));
      if (gated) {
        expected = ops::reference::SwiGlu(expected.narrow(1, 0, rows / 2),
                                          expected.narrow(1, rows / 2, rows / 2));
      }
      // What lies behind the result stays.
      const at::Tensor empty = at::full({expected.size(1) + 1}, -7, x.options());
      const at::Tensor found = InAnyOrder({empty}, [&](std::vector<at::Tensor>& outs) {
        MultiplyRow({.x = x.data_ptr(),
                     .weight = weight.data_ptr(),
                     .out = outs[0].data_ptr(),
                     .rows = static_cast<int>(rows),
                     .depth = static_cast<int>(depth),
                     .gated = gated},
                    TheStream());
      })[0];
      ExpectNear(found.narrow(0, 0, expected.size(1)), expected[0], 1e-2);
      EXPECT_EQ(found[expected.size(1)].item<float>(), -7);
    }
  }
}

TEST_F(MultiplyRowTest, RefusesOtherShapes) {
  RowProductArgs args{};
  args.rows = 3;
  args.depth = 12;
  EXPECT_THROW(MultiplyRow(args, TheStream()), std::invalid_argument);
  args.depth = kRowMostDepth + 8;
  EXPECT_THROW(MultiplyRow(args, TheStream()), std::invalid_argument);
  args.depth = 16;
  args.gated = true;
  EXPECT_THROW(MultiplyRow(args, TheStream()), std::invalid_argument);
}

}  // namespace
}  // namespace llava::cuda
