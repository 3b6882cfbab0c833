#pragma once

// Weights in the form in which products read them fastest: bfloat16, or integers with a scale for
// every group along K.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/ops/cpu/gemm.h"
#include "model/ops/cpu/thread_pool.h"
#include "model/ops/cpu/weight_memory.h"

namespace llava::ops::cpu {

// Element types that weights come in.
enum class SourceElement : uint8_t { kFloat, kBFloat16, kHalf };

// W [N, K] of y [M, N] = x [M, K] W^T. Filled by its rows in order, then constant: any number of
// threads may multiply by it.
class PackedMatrix {
 public:
  struct Options {
    WeightFormat format = WeightFormat::kInt8;
    // Weights along K with one scale: 32, 64 or 128; 0: 128 for int8, 64 for int4. Also 256, 512
    // and 1024 for int8: coarser, and faster where rows are many.
    int64_t group = 0;
    // Integers: the few weights far from the others are kept as they are, at most one in 512 of a
    // row. Without this a single one makes its whole group coarse.
    bool keep_outliers = true;
  };

  // Takes memory for N x K weights from `memory`, or some of its own. Throws std::invalid_argument.
  PackedMatrix(int64_t rows, int64_t depth, const Options& options,
               std::shared_ptr<WeightMemory> memory = nullptr);
  PackedMatrix(PackedMatrix&&) = default;
  PackedMatrix& operator=(PackedMatrix&&) = default;

  // The next `rows` rows of W, `stride` elements apart. The last one makes the matrix complete.
  void Append(ThreadPool& pool, SourceElement element, const void* source, int64_t rows,
              int64_t stride);

  int64_t rows() const { return layout_.rows; }
  int64_t depth() const { return layout_.depth; }
  WeightFormat format() const { return layout_.format; }
  int64_t group() const { return layout_.block; }
  bool complete() const { return appended_ == layout_.rows; }
  // What a product reads.
  int64_t bytes() const;
  int64_t num_outliers() const { return static_cast<int64_t>(outliers_.size()); }
  std::string Describe() const;  // "int8 [5632, 2048] in groups of 128"

  // Row `row` as products see it, [K].
  void Unpack(int64_t row, float* out) const;

  // A complete matrix as bytes that any processor reads back to the same bits; layout in
  // docs/formats.md.
  static constexpr const char* kStoredLayout = "panel32.v1";
  int64_t stored_bytes() const;
  // `to`: stored_bytes(). Throws std::invalid_argument if it has another size or rows are missing.
  void Store(std::span<uint8_t> to) const;
  // Copies `stored`, in one pass from its beginning. Checks every size and place; throws
  // std::runtime_error saying what is wrong.
  static PackedMatrix Load(std::span<const uint8_t> stored,
                           std::shared_ptr<WeightMemory> memory = nullptr);

  // For kernels.
  const PackedLayout& layout() const { return layout_; }
  const uint8_t* panel(int64_t index) const { return panels_ + index * layout_.panel_bytes; }
  struct Outliers {
    const Outlier* data;
    int64_t size;
  };
  Outliers outliers(int64_t panel) const {
    return {outliers_.data() + first_outlier_[panel],
            first_outlier_[panel + 1] - first_outlier_[panel]};
  }

 private:
  static PackedLayout LayoutOf(int64_t rows, int64_t depth, const Options& options);
  // Values stay as they are, they only change places.
  void AppendBFloat16(ThreadPool& pool, const uint16_t* source, int64_t rows, int64_t stride);
  void Seal();

  PackedLayout layout_;
  bool keep_outliers_;
  std::shared_ptr<WeightMemory> memory_;
  uint8_t* panels_;
  int64_t appended_ = 0;                     // rows
  std::vector<std::vector<Outlier>> found_;  // of each panel, until the matrix is complete
  std::vector<Outlier> outliers_;            // of all panels, each by column, then by k
  std::vector<int64_t> first_outlier_;       // [panels + 1]
};

}  // namespace llava::ops::cpu
