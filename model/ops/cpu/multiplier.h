#pragma once

// Products of activations with packed weights: y [M, N] = x [M, K] W^T.

#include <cstdint>
#include <vector>

#include "model/ops/cpu/packed_matrix.h"
#include "model/ops/cpu/scratch.h"
#include "model/ops/cpu/thread_pool.h"

namespace llava::ops::cpu {

// What happens to a product before it is stored: + bias, then the function.
struct Finishing {
  const float* bias = nullptr;  // [N]; null: none
  Unary function = Unary::kNone;
};

// Integer weights quantise x to 8 bits by row and group, bfloat16 weights round it to bfloat16. Row
// i of y depends on row i of x and on W alone, to the bit: not on the other rows nor their number,
// nor on threads. An x that is not finite makes its own row of y NaN (bfloat16: as arithmetic
// goes).
//
// Holds memory between calls. One thread at a time; several multipliers may share a pool.
class Multiplier {
 public:
  explicit Multiplier(ThreadPool& pool, const Kernels& kernels = Best());

  struct Input {
    Element element = Element::kFloat;
    const void* data = nullptr;  // [rows, K], rows `stride` elements apart
    int64_t rows = 0, columns = 0, stride = 0;
    // Memory may be read up to a whole multiple of kRowBlock rows. Then bfloat16 is multiplied by
    // bfloat16 weights as it lies (stride and columns: multiples of 32).
    bool padded = false;
    const RowNorm* norm = nullptr;  // of the rows, before anything else
  };
  struct Output {
    Element element = Element::kFloat;
    void* data = nullptr;  // [rows, N]
    int64_t rows = 0, columns = 0, stride = 0;
  };
  enum class Store : uint8_t { kOverwrite, kAdd };

  // Overwrites y, or adds to it. Nothing may overlap. No rows: nothing happens. Throws
  // std::invalid_argument when shapes do not fit or W is not complete.
  void Multiply(const Input& x, const PackedMatrix& weights, const Output& y,
                Store store = Store::kOverwrite, const Finishing& finishing = {});

 private:
  void Prepare(const Input& x, const PackedMatrix& weights);
  void MultiplyPrepared(const PackedMatrix& weights, const Output& y, Store store,
                        const Finishing& finishing);

  ThreadPool& pool_;
  const Kernels& kernels_;
  Activations activations_;
  Scratch values_, scales_, corrections_, exact_;
  std::vector<Scratch> sums_, normed_;  // of each worker
};

}  // namespace llava::ops::cpu
