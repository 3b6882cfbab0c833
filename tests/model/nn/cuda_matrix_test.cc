// CudaMatrix against the CPU's packed matrices, on a GPU or with its kernels emulated
// (kernel_device.h).

#include "model/nn/cuda_matrix.h"

#include <cmath>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "model/ops/cpu/packed_matrix.h"
#include "model/ops/cpu/thread_pool.h"
#include "model/ops/cuda/runtime.h"
#include "model/ops/feature.h"
#include "model/ops/ops.h"
#include "tests/model/nn/tiny_model.h"
#include "tests/model/ops/kernel_device.h"

namespace llava {
namespace {

using ops::cpu::PackedMatrix;
using ops::cpu::WeightFormat;

struct Shape {
  int64_t rows, depth;
};

class CudaMatrixTest : public cuda::KernelTest {
 protected:
  void SetUp() override {
    cuda::KernelTest::SetUp();
    at::globalContext().setAllowTF32CuBLAS(false);
  }
  void TearDown() override { ops::Enable(ops::Feature::kTiles, true); }

  static at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
    return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
  }
  // Normal numbers with a few far from the others, some of them in the last row and at its end.
  static at::Tensor RandomWeights(const Shape& shape, uint64_t seed) {
    at::Tensor weights = Random({shape.rows, shape.depth}, seed);
    for (int64_t i = 0; i < weights.numel(); i += 709) weights.view(-1)[i] *= 30;
    weights.view(-1)[weights.numel() - 1] = -40;
    return weights;
  }
  PackedMatrix Pack(const at::Tensor& weights, WeightFormat format, int64_t group) {
    PackedMatrix packed(weights.size(0), weights.size(1), {format, group, true});
    packed.Append(pool_, ops::cpu::SourceElement::kFloat, weights.const_data_ptr(), weights.size(0),
                  weights.size(1));
    return packed;
  }
  static at::Tensor Unpacked(const PackedMatrix& packed) {
    at::Tensor values = at::empty({packed.rows(), packed.depth()}, at::kFloat);
    for (int64_t row = 0; row < packed.rows(); ++row) {
      packed.Unpack(row, values.data_ptr<float>() + row * packed.depth());
    }
    return values;
  }
  static at::Tensor ToDevice(const at::Tensor& x) {
    return x.to(at::TensorOptions(cuda::KernelDevice()).dtype(at::kBFloat16));
  }
  // Least rows, in whole panels, whose streamed product has the blocks of this device take several
  // panels or gated pairs each. StreamsPacked refuses those of just more than one turn.
  static int64_t RowsOfTurns(bool gated) {
    const int64_t panel = (gated ? 2 : 1) * cuda::kPanelRows;
    cuda::PackedProductArgs args{};
    args.rows = 1;
    args.gated = gated;
    args.weight.depth = args.weight.group = 128;
    bool refused = false;
    for (int64_t panels = 1; panels < 1000; ++panels) {
      args.weight.rows = static_cast<int>(panels * panel);
      if (!cuda::StreamsPacked(args)) {
        refused = true;
      } else if (refused) {
        return args.weight.rows;
      }
    }
    return 7 * panel;  // the emulation streams them all, with three blocks
  }
  // Rounding to bfloat16 once is all that may be between them.
  static void ExpectRounded(const at::Tensor& found, const at::Tensor& expected) {
    const at::Tensor x = found.to(at::kCPU, at::kDouble);
    ASSERT_EQ(x.sizes(), expected.sizes());
    ASSERT_TRUE(at::isfinite(x).all().item<bool>());
    const double bound = 0x1p-8 * 1.01 + 1e-5;  // of the largest value of a row
    const at::Tensor largest = std::get<0>(expected.abs().max(1, /*keepdim=*/true));
    EXPECT_LE(((x - expected).abs() / largest).max().item<double>(), bound);
  }

  ops::cpu::ThreadPool pool_{1};
};

const struct {
  WeightFormat format;
  int64_t group;
} kFormats[] = {{WeightFormat::kInt4, 32}, {WeightFormat::kInt4, 64}, {WeightFormat::kInt4, 128},
                {WeightFormat::kInt8, 32}, {WeightFormat::kInt8, 64}, {WeightFormat::kInt8, 128}};

TEST_F(CudaMatrixTest, UnpacksToTheBitWhatTheCpuServes) {
  for (const auto& [format, group] : kFormats) {
    for (const Shape shape : {Shape{1, 1}, Shape{33, 36}, Shape{64, 300}, Shape{70, 1384}}) {
      const PackedMatrix packed = Pack(RandomWeights(shape, 1), format, group);
      SCOPED_TRACE(packed.Describe());
      const CudaMatrix matrix(packed, cuda::KernelDevice());
      ASSERT_TRUE(matrix.is_packed());
      EXPECT_GE(matrix.bytes(), static_cast<uint64_t>(packed.bytes()));
      const at::Tensor expected = Unpacked(packed);
      EXPECT_TRUE(at::equal(matrix.Dense(at::kFloat).cpu(), expected));
      EXPECT_TRUE(at::equal(matrix.Dense(at::kBFloat16).cpu(), expected.to(at::kBFloat16)));
      if (shape.depth > 256) {
        EXPECT_GT(packed.num_outliers(), 0);
      }
    }
  }
}

TEST_F(CudaMatrixTest, MultipliesByWhatTheCpuServes) {
  for (const auto& [format, group] : kFormats) {
    for (const Shape shape :
         {Shape{1, 8}, Shape{33, 200}, Shape{97, 1384}, Shape{64, 4096}, Shape{40, 8264}}) {
      const PackedMatrix packed = Pack(RandomWeights(shape, 2), format, group);
      const CudaMatrix matrix(packed, cuda::KernelDevice());
      const at::Tensor x = ToDevice(Random({70, shape.depth}, 3));
      const at::Tensor expected =
          at::linear(x.cpu().to(at::kDouble), Unpacked(packed).to(at::kDouble));
      at::Tensor all;
      for (const int64_t rows : {70, 64, 33, 17, 9, 8, 1}) {
        if (shape.depth > 2000 && rows > 17) continue;  // slow in emulation
        SCOPED_TRACE(packed.Describe() + " by " + std::to_string(rows));
        for (const bool tiles : {true, false}) {
          if (!tiles && rows <= 16) continue;  // none in either case
          ops::Enable(ops::Feature::kTiles, tiles);
          at::Tensor found;
          for (const bool backwards : {false, true}) {
            cuda::RunThreadsBackwards(backwards);
            const at::Tensor once = matrix.Multiply(x.narrow(0, 0, rows)).cpu();
            cuda::RunThreadsBackwards(false);
            EXPECT_TRUE(!found.defined() || at::equal(once, found)) << "depends on the order";
            found = once;
            if (rows > 17 && !tiles) break;
          }
          ExpectRounded(found, expected.narrow(0, 0, rows));
        }
      }
    }
  }
}

TEST_F(CudaMatrixTest, StreamsFewRows) {
  for (const auto& [format, group] : kFormats) {
    // Panels for one turn of the blocks and for several, depths that fill no stage.
    const int64_t turns = RowsOfTurns(/*gated=*/false);
    for (const Shape shape : {Shape{1, 8}, Shape{33, 200}, Shape{64, 4096}, Shape{turns - 4, 136},
                              Shape{turns, 1384}}) {
      const PackedMatrix packed = Pack(RandomWeights(shape, 2), format, group);
      const CudaMatrix matrix(packed, cuda::KernelDevice());
      const at::Tensor x = ToDevice(Random({9, shape.depth}, 3));
      const at::Tensor expected =
          at::linear(x.cpu().to(at::kDouble), Unpacked(packed).to(at::kDouble));
      at::Tensor all;
      for (const int64_t rows : {9, 8, 3, 1}) {  // nine are not streamed
        SCOPED_TRACE(packed.Describe() + " by " + std::to_string(rows));
        at::Tensor found;
        for (const bool backwards : {false, true}) {
          cuda::RunThreadsBackwards(backwards);
          const at::Tensor once = matrix.Multiply(x.narrow(0, 0, rows), /*stream=*/true).cpu();
          cuda::RunThreadsBackwards(false);
          EXPECT_TRUE(!found.defined() || at::equal(once, found)) << "depends on the order";
          found = once;
        }
        ExpectRounded(found, expected.narrow(0, 0, rows));
        if (rows == 8) all = found;
        if (rows < 8) {
          EXPECT_TRUE(at::equal(found, all.narrow(0, 0, rows)))
              << "a row depends on its neighbours";
        }
      }
    }
  }
  // Plain ones; the last is deeper than what is streamed.
  for (const Shape shape : {Shape{37, 392}, Shape{3, cuda::kRowMostDepth + 8}}) {
    const CudaMatrix plain(ToDevice(Random({shape.rows, shape.depth}, 4)));
    const at::Tensor x = ToDevice(Random({2, shape.depth}, 5));
    const at::Tensor expected =
        at::linear(x.cpu().to(at::kDouble), plain.Dense(at::kBFloat16).cpu().to(at::kDouble));
    for (const int64_t rows : {1, 2}) {
      ExpectRounded(plain.Multiply(x.narrow(0, 0, rows), /*stream=*/true),
                    expected.narrow(0, 0, rows));
    }
  }
}

TEST_F(CudaMatrixTest, ARowIsTheSameBesideAnyOthers) {
  const PackedMatrix packed = Pack(RandomWeights({64, 392}, 4), WeightFormat::kInt4, 64);
  const CudaMatrix matrix(packed, cuda::KernelDevice());
  const at::Tensor x = ToDevice(Random({16, 392}, 5));
  // Streams: eight rows at most.
  at::Tensor eight = x.narrow(0, 0, 8).clone();
  const at::Tensor streamed = matrix.Multiply(eight, /*stream=*/true).cpu();
  eight[3].fill_(NAN);
  const at::Tensor beside = matrix.Multiply(eight, /*stream=*/true).cpu();
  EXPECT_TRUE(at::isnan(beside[3]).all().item<bool>());
  EXPECT_TRUE(at::equal(beside[2], streamed[2]));
  EXPECT_TRUE(at::equal(beside[7], streamed[7]));

  const at::Tensor all = matrix.Multiply(x).cpu();
  for (const int64_t row : {0, 7, 8, 15}) {
    EXPECT_TRUE(at::equal(matrix.Multiply(x.narrow(0, row, 1)).cpu()[0], all[row])) << row;
  }
  // Not even by what is not a number.
  at::Tensor broken = x.clone();
  broken[3].fill_(NAN);
  const at::Tensor found = matrix.Multiply(broken).cpu();
  EXPECT_TRUE(at::isnan(found[3]).all().item<bool>());
  EXPECT_TRUE(at::equal(found[2], all[2]));
  EXPECT_TRUE(at::equal(found[11], all[11]));
}

TEST_F(CudaMatrixTest, ARowOfManyDoesNotDependOnHowMany) {
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kInt8}) {
    // Several slices, the last one shorter; panels that fill no block.
    const PackedMatrix packed = Pack(RandomWeights({72, 1384}, 4), format, 32);
    const CudaMatrix matrix(packed, cuda::KernelDevice());
    const at::Tensor x = ToDevice(Random({64, 1384}, 5));
    const at::Tensor all = matrix.Multiply(x).cpu();
    for (const int64_t rows : {17, 33}) {
      EXPECT_TRUE(at::equal(matrix.Multiply(x.narrow(0, 0, rows)).cpu(), all.narrow(0, 0, rows)));
    }
  }
}

TEST_F(CudaMatrixTest, GatesTheProduct) {
  for (const auto& [format, group] : kFormats) {
    // The third one has halves that share a panel; the last two have several turns of the blocks.
    const int64_t turns = RowsOfTurns(/*gated=*/true);
    for (const Shape shape :
         {Shape{64, 136}, Shape{192, 392}, Shape{88, 392}, Shape{turns, 72}, Shape{turns, 712}}) {
      const PackedMatrix packed = Pack(RandomWeights(shape, 6) / 20, format, group);
      const CudaMatrix matrix(packed, cuda::KernelDevice());
      const at::Tensor x = ToDevice(Random({33, shape.depth}, 7));
      const at::Tensor product =
          at::linear(x.cpu().to(at::kDouble), Unpacked(packed).to(at::kDouble))
              .to(at::kBFloat16)
              .to(at::kDouble);
      const int64_t width = shape.rows / 2;
      const at::Tensor expected =
          ops::reference::SwiGlu(product.narrow(1, 0, width), product.narrow(1, width, width));
      for (const int64_t rows : {1, 9, 33, -1, -8, -33}) {
        // The other kernels, too: older tiles, streams.
        ops::Enable(ops::Feature::kTiles, rows > 0);
        const int64_t count = std::abs(rows);
        SCOPED_TRACE(packed.Describe() + " by " + std::to_string(rows));
        const at::Tensor out = at::full({count, width}, NAN, x.options());
        matrix.MultiplyGated(x.narrow(0, 0, count), out, /*stream=*/rows < 0);
        const at::Tensor found = out.cpu().to(at::kDouble), right = expected.narrow(0, 0, count);
        ASSERT_TRUE(at::isfinite(found).all().item<bool>());
        EXPECT_LE((found - right).abs().max().item<double>(),
                  1e-2 * right.abs().max().item<double>());
      }
    }
  }
}

TEST_F(CudaMatrixTest, UnpacksForManyRowsAndOddDepths) {
  for (const Shape shape : {Shape{50, 36}, Shape{50, 264}}) {
    const PackedMatrix packed = Pack(RandomWeights(shape, 8), WeightFormat::kInt8, 32);
    const CudaMatrix matrix(packed, cuda::KernelDevice());
    const at::Tensor x = ToDevice(Random({150, shape.depth}, 9));
    // The library's product takes weights rounded to bfloat16.
    const at::Tensor weights = Unpacked(packed).to(at::kBFloat16).to(at::kDouble);
    ExpectRounded(matrix.Multiply(x), at::linear(x.cpu().to(at::kDouble), weights));
  }
}

TEST_F(CudaMatrixTest, TakesPlainFormatsAsTheyAre) {
  const at::Tensor weights = Random({40, 96}, 10);
  const CudaMatrix bfloat16(Pack(weights, WeightFormat::kBFloat16, 0), cuda::KernelDevice());
  EXPECT_FALSE(bfloat16.is_packed());
  EXPECT_TRUE(at::equal(bfloat16.Dense(at::kBFloat16).cpu(), weights.to(at::kBFloat16)));
  const CudaMatrix floats(Pack(weights, WeightFormat::kFloat, 0), cuda::KernelDevice());
  EXPECT_TRUE(at::equal(floats.Dense(at::kFloat).cpu(), weights));
  EXPECT_EQ(floats.bytes(), uint64_t{40 * 96 * 4});
}

TEST_F(CudaMatrixTest, KernelsRefuseOtherShapes) {
  const cuda::Stream stream = cuda::CurrentStream(cuda::KernelDevice());
  cuda::PackedProductArgs args{};
  args.weight.rows = args.weight.depth = args.weight.group = 64;
  args.weight.int4 = true;
  args.rows = cuda::kPackedRows + 1;
  EXPECT_THROW(cuda::MultiplyPacked(args, stream), std::invalid_argument);
  EXPECT_THROW(cuda::MultiplyPackedTiles(args, nullptr, stream), std::invalid_argument);
  args.rows = 1;
  args.weight.depth = 60;
  EXPECT_THROW(cuda::MultiplyPacked(args, stream), std::invalid_argument);
  args.weight.depth = 64;
  args.weight.group = 48;
  EXPECT_THROW(cuda::MultiplyPacked(args, stream), std::invalid_argument);
  args.weight.group = 32;
  EXPECT_FALSE(cuda::StreamsPacked(args));
  EXPECT_THROW(cuda::MultiplyPackedStream(args, stream), std::invalid_argument);
  args.weight.group = 64;
  args.gated = true;
  args.weight.rows = 96;
  EXPECT_THROW(cuda::MultiplyPacked(args, stream), std::invalid_argument);
}

}  // namespace
}  // namespace llava
