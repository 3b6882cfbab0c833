#pragma once

// A weight of CudaLlama on its device: as it is, or as packed integers
// (model/ops/cpu/packed_matrix.h), in the same bytes and with the same meaning.

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "model/ops/cpu/packed_matrix.h"
#include "model/ops/cuda/kernels.h"

namespace llava {

// Throws std::invalid_argument if the kernels do not know the type.
cuda::Element ElementOf(at::ScalarType dtype);

// W [N, K] of y [T, N] = x [T, K] W^T. Constant; copies share memory. One thread at a time.
class CudaMatrix {
 public:
  // Float32 or bfloat16, contiguous.
  explicit CudaMatrix(at::Tensor dense);
  // Integers stay packed; float32 and bfloat16 are unpacked.
  CudaMatrix(const ops::cpu::PackedMatrix& packed, at::Device device);

  int64_t rows() const { return rows_; }
  int64_t depth() const { return depth_; }
  uint64_t bytes() const;  // of the device
  bool is_packed() const { return panels_.defined(); }

  // The matrix in `dtype`, rounded from what products see; itself if it is that.
  at::Tensor Dense(at::ScalarType dtype) const;
  // x contiguous, of the dtype of a dense matrix; beside a packed one float32 or bfloat16, of which
  // only the latter has kernels that read packed weights. `stream`: a row of bfloat16 (at most
  // cuda::kRowMostDepth long), or up to eight with packed weights, are left to the kernels that
  // read ahead over the ends of others.
  at::Tensor Multiply(const at::Tensor& x, bool stream = false) const;
  // SwiGlu of the product with gate and up, the halves of the rows, into `out` [T, N / 2].
  void MultiplyGated(const at::Tensor& x, const at::Tensor& out, bool stream = false) const;
  // Most rows that can be streamed.
  int64_t streamed_rows() const { return is_packed() ? kStreamedPackedRows : 1; }

  static constexpr int64_t kStreamedPackedRows = 8;

 private:
  // Whether the kernels that read packed weights are to multiply them by x.
  bool ReadsPacked(const at::Tensor& x) const;
  // By these: `out` [T, N], gated [T, N / 2].
  void MultiplyPacked(const at::Tensor& x, bool gated, bool stream, const at::Tensor& out) const;
  // Whether there is a streaming product of this matrix, if it is plain, with x; and that.
  bool StreamsPlain(const at::Tensor& x) const;
  void StreamPlain(const at::Tensor& x, bool gated, const at::Tensor& out) const;
  cuda::PackedWeights View() const;

  int64_t rows_, depth_;
  at::Tensor dense_;                // [N, K], or:
  at::Tensor panels_;               // [panels, bytes of a panel]
  at::Tensor first_apart_, apart_;  // int32 [N + 1], [weights kept apart, 2]: k, value
  int group_ = 0;
  bool int4_ = false;
};

}  // namespace llava
