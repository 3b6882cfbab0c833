#include "model/nn/cuda_matrix.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "model/ops/cuda/runtime.h"
#include "model/ops/feature.h"
#include "model/ops/ops.h"

namespace llava {
namespace {

using ops::cpu::Outlier;
using ops::cpu::PackedMatrix;
using ops::cpu::WeightFormat;

static_assert(cuda::kPanelRows == ops::cpu::kPanel);
static_assert(sizeof(cuda::PackedWeights::Apart) == 8);

// Rows of x for which packed weights are read again and again, 64 at a time; with more they are
// unpacked once for the library's product.
constexpr int64_t kMostPackedRows = 2 * cuda::kPackedRows;

static_assert(CudaMatrix::kStreamedPackedRows <= kMostPackedRows);

// Up to so many, weights pass through registers alone; more of them share what a block has read.
constexpr int64_t kFewRows = 16;

at::Tensor UnpackOnHost(const PackedMatrix& packed) {
  at::Tensor values = at::empty({packed.rows(), packed.depth()}, at::kFloat);
  float* const to = values.data_ptr<float>();
  at::parallel_for(0, packed.rows(), /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) packed.Unpack(row, to + row * packed.depth());
  });
  return values.to(packed.format() == WeightFormat::kFloat ? at::kFloat : at::kBFloat16);
}

}  // namespace

cuda::Element ElementOf(at::ScalarType dtype) {
  if (dtype == at::kFloat) return cuda::Element::kFloat;
  if (dtype == at::kBFloat16) return cuda::Element::kBFloat16;
  throw std::invalid_argument("CUDA kernels are for float32 and bfloat16");
}

CudaMatrix::CudaMatrix(at::Tensor dense)
    : rows_(dense.size(0)), depth_(dense.size(1)), dense_(std::move(dense)) {
  ElementOf(dense_.scalar_type());
}

CudaMatrix::CudaMatrix(const PackedMatrix& packed, at::Device device)
    : rows_(packed.rows()), depth_(packed.depth()) {
  if (!IsInteger(packed.format())) {
    dense_ = UnpackOnHost(packed).to(device);
    return;
  }
  group_ = static_cast<int>(packed.group());
  int4_ = packed.format() == WeightFormat::kInt4;
  const ops::cpu::PackedLayout& layout = packed.layout();
  panels_ =
      at::empty({layout.panels, layout.panel_bytes}, at::TensorOptions(device).dtype(at::kByte));
  // Only read; LibTorch knows no constant memory.
  panels_.copy_(at::from_blob(const_cast<uint8_t*>(packed.panel(0)),
                              {layout.panels, layout.panel_bytes}, at::kByte));
  std::vector<int32_t> first = {0}, apart;
  for (int64_t panel = 0; panel < layout.panels; ++panel) {
    const PackedMatrix::Outliers outliers = packed.outliers(panel);
    const Outlier* next = outliers.data;
    const int64_t columns = std::min(ops::cpu::kPanel, rows_ - panel * ops::cpu::kPanel);
    for (int64_t column = 0; column < columns; ++column) {
      for (; next != outliers.data + outliers.size && next->where % ops::cpu::kPanel == column;
           ++next) {
        apart.push_back(static_cast<int32_t>(next->where / ops::cpu::kPanel));
        apart.push_back(std::bit_cast<int32_t>(next->value));
      }
      first.push_back(static_cast<int32_t>(apart.size() / 2));
    }
  }
  const auto upload = [device](std::vector<int32_t>& values) {
    return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kInt)
        .to(device, /*non_blocking=*/false, /*copy=*/true);
  };
  first_apart_ = upload(first);
  apart_ = upload(apart).view({-1, 2});
}

uint64_t CudaMatrix::bytes() const {
  if (!is_packed()) return dense_.nbytes();
  return panels_.nbytes() + first_apart_.nbytes() + apart_.nbytes();
}

cuda::PackedWeights CudaMatrix::View() const {
  return {.panels = panels_.const_data_ptr<uint8_t>(),
          .first = first_apart_.const_data_ptr<int32_t>(),
          .apart = static_cast<const cuda::PackedWeights::Apart*>(apart_.const_data_ptr()),
          .rows = static_cast<int>(rows_),
          .depth = static_cast<int>(depth_),
          .group = group_,
          .int4 = int4_};
}

at::Tensor CudaMatrix::Dense(at::ScalarType dtype) const {
  if (!is_packed()) return dense_.to(dtype);
  at::Tensor out = at::empty({rows_, depth_}, panels_.options().dtype(dtype));
  cuda::Unpack(ElementOf(dtype), View(), out.data_ptr(), cuda::CurrentStream(panels_.device()));
  return out;
}

bool CudaMatrix::ReadsPacked(const at::Tensor& x) const {
  const int64_t count = x.size(0);
  return is_packed() && count > 0 && count <= kMostPackedRows && depth_ % 8 == 0 &&
         x.scalar_type() == at::kBFloat16;
}

bool CudaMatrix::StreamsPlain(const at::Tensor& x) const {
  return !is_packed() && x.size(0) == 1 && depth_ % 8 == 0 && depth_ <= cuda::kRowMostDepth &&
         x.scalar_type() == at::kBFloat16;
}

void CudaMatrix::StreamPlain(const at::Tensor& x, bool gated, const at::Tensor& out) const {
  cuda::MultiplyRow({.x = x.const_data_ptr(),
                     .weight = dense_.const_data_ptr(),
                     .out = out.data_ptr(),
                     .rows = static_cast<int>(rows_),
                     .depth = static_cast<int>(depth_),
                     .gated = gated},
                    cuda::CurrentStream(x.device()));
}

void CudaMatrix::MultiplyPacked(const at::Tensor& x, bool gated, bool stream,
                                const at::Tensor& out) const {
  const cuda::Stream queue = cuda::CurrentStream(x.device());
  for (int64_t first = 0; first < x.size(0); first += cuda::kPackedRows) {
    const int64_t count = std::min<int64_t>(cuda::kPackedRows, x.size(0) - first);
    const cuda::PackedProductArgs args = {.x = x.narrow(0, first, count).const_data_ptr(),
                                          .weight = View(),
                                          .out = out.narrow(0, first, count).data_ptr(),
                                          .gated = gated,
                                          .rows = static_cast<int>(count)};
    if (stream && cuda::StreamsPacked(args)) {
      cuda::MultiplyPackedStream(args, queue);
      continue;
    }
    if (count <= kFewRows || !ops::Enabled(ops::Feature::kTiles)) {
      cuda::MultiplyPacked(args, queue);
      continue;
    }
    const at::Tensor partial =
        at::empty({cuda::SlicesOf(args.weight), count, panels_.size(0) * cuda::kPanelRows},
                  x.options().dtype(at::kFloat));
    cuda::MultiplyPackedTiles(args, partial.data_ptr<float>(), queue);
  }
}

at::Tensor CudaMatrix::Multiply(const at::Tensor& x, bool stream) const {
  const bool plain = stream && StreamsPlain(x);
  if (!plain && !ReadsPacked(x)) return ops::Linear(x, Dense(x.scalar_type()));
  at::Tensor out = at::empty({x.size(0), rows_}, x.options());
  if (plain) {
    StreamPlain(x, /*gated=*/false, out);
  } else {
    MultiplyPacked(x, /*gated=*/false, stream, out);
  }
  return out;
}

void CudaMatrix::MultiplyGated(const at::Tensor& x, const at::Tensor& out, bool stream) const {
  if (stream && StreamsPlain(x)) return StreamPlain(x, /*gated=*/true, out);
  // The kernel makes gate and up of whole panels.
  if (ReadsPacked(x) && rows_ % (2 * cuda::kPanelRows) == 0) {
    return MultiplyPacked(x, /*gated=*/true, stream, out);
  }
  const at::Tensor product = Multiply(x, stream);
  cuda::SwiGlu(ElementOf(x.scalar_type()),
               {.gate_up = product.const_data_ptr(),
                .out = out.data_ptr(),
                .width = static_cast<int>(rows_ / 2)},
               x.size(0), cuda::CurrentStream(x.device()));
}

}  // namespace llava
