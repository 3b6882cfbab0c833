#pragma once

// What the kernels of products y [M, N] = x [M, K] W^T, W [N, K], know of each other: how packed
// weights and prepared activations lie in memory. Plain data; packed_matrix.h and multiplier.h are
// what others use.
//
// Weights lie in panels of 32 rows of W. A panel is a sequence of blocks along K, each:
//   integers: 32 scales in bfloat16, then the values of one group
//     int8: w + 128 as a byte, [group / 4][32][4]
//     int4: w + 8 as a nibble, [group / 8][32][4]: of 8 consecutive k, the first four are the low
//           halves of four bytes and the last four the high halves
//   bfloat16: [block / 2][32][2]
//   float: [block][32]
// which is the order in which dot-product instructions and tiles take them, and one stream of
// memory. K is padded by zeros. A few large weights of integer matrices are kept apart, exactly, as
// outliers.

#include <cstdint>

#include "model/ops/cpu/kernels.h"

namespace llava::ops::cpu {

enum class WeightFormat : uint8_t { kBFloat16, kInt8, kInt4, kFloat };

// Functions of this header are inlined whatever the optimisation: of the copies that each
// instruction set's kernels would have, the linker keeps any one for all.
[[gnu::always_inline]] constexpr bool IsInteger(WeightFormat format) {
  return format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
}
// Bytes of an activation beside such weights.
[[gnu::always_inline]] constexpr int64_t ValueBytes(WeightFormat format) {
  return IsInteger(format) ? 1 : format == WeightFormat::kBFloat16 ? 2 : 4;
}

constexpr int64_t kPanel = 32;
constexpr int64_t kScaleBytes = kPanel * 2;
// In groups up to this outliers meet x itself, in larger ones its bytes: these are for products of
// many rows, which have no time to keep x twice.
constexpr int64_t kLargestExactGroup = 128;
// Rows of x that kernels may take together: the rows of a tile, the lanes of a vector.
constexpr int64_t kRowBlock = 16;

struct PackedLayout {
  WeightFormat format = WeightFormat::kBFloat16;
  int64_t rows = 0, depth = 0;  // N, K
  int64_t panels = 0;
  int64_t block = 0;         // along K: the group; else how much is summed at a time
  int64_t blocks = 0;        // the last one may be shorter unless it is a group
  int64_t padded_depth = 0;  // K up to a whole group, or to 32
  int64_t block_bytes = 0;   // of a whole block
  int64_t panel_bytes = 0;
};

// A weight that is not in the panel: W[32 panel + where % 32][where / 32].
struct Outlier {
  uint32_t where;
  float value;
};

// A row of W into a panel.
struct PackTask {
  const PackedLayout* layout;
  uint8_t* panel;
  int64_t column;     // which of the panel's 32
  const float* row;   // [padded_depth], zeros behind K
  float* scratch;     // [blocks]
  Outlier* outliers;  // room for `most_outliers`; null: keep none apart
  int64_t most_outliers;
  int64_t num_outliers;  // found, in order of k
};

// x as the kernels take it: bytes beside integers, else of the format of the weights.
struct Activations {
  int64_t rows = 0;
  // Readable up to a whole multiple of kRowBlock rows. Rows of padded_depth values, `line` bytes
  // apart, or as many of them are read fastest: [blocks][rows / kRowBlock] pieces, each
  // [bytes of a row in a block / unit][kRowBlock][unit].
  uint8_t* values = nullptr;
  int64_t line = 0;
  int64_t unit = 0;                // 0: rows
  float* scales = nullptr;         // [blocks][rows]; NaN where x is not finite
  int32_t* corrections = nullptr;  // [blocks][rows]: minus the sum of values times the offset of w
  // x itself for the outliers, [rows / lanes][K][lanes]; null: there are none, or they meet the
  // values.
  float* exact = nullptr;
  int64_t lanes = 1;  // kRowBlock unless there is one row
};

// The values of a row, and of others of its kRowBlock, that a block sees.
struct BlockValues {
  uint8_t* data;
  int64_t line;  // bytes from row to row
  int64_t unit;  // bytes that lie together
  int64_t step;  // bytes from unit to unit
};
// `bytes`: of a row in a block.
[[gnu::always_inline]] inline BlockValues ValuesOf(const Activations& x, int64_t row, int64_t block,
                                                   int64_t bytes) {
  if (x.unit == 0) return {x.values + row * x.line + block * bytes, x.line, bytes, bytes};
  const int64_t row_blocks = (x.rows + kRowBlock - 1) / kRowBlock;
  uint8_t* const piece = x.values + (block * row_blocks + row / kRowBlock) * kRowBlock * bytes;
  return {piece + row % kRowBlock * x.unit, x.unit, x.unit, kRowBlock * x.unit};
}

// Layer norm: (x - mean) / sqrt(variance + eps) * weight + bias.
struct RowNorm {
  const float* weight = nullptr;  // [K]
  const float* bias = nullptr;    // [K]
  float eps = 0;
};

// Rows [first, first + count) of x into activations, at most kRowBlock beginning at a multiple of
// it.
struct PrepareTask {
  const PackedLayout* layout;
  const Activations* activations;
  Element element;
  ConstRows x;  // its first row is `first`
  int64_t first, count;
  int64_t first_block, blocks;  // along K; all of them if there is a norm
  const RowNorm* norm;          // of the rows before all else; null: none
  float* scratch;               // [kRowBlock][K], for the norm
};

// Memory that will be read next.
struct Next {
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
};

// Adds the product with a panel over some of its blocks to sums.
struct PanelTask {
  const PackedLayout* layout;
  const Activations* activations;
  const uint8_t* panel;
  int64_t first_row, rows;  // of x
  int64_t first_block, blocks;
  float* sums;  // [rows up to a multiple of kRowBlock][32]; block 0 overwrites
  // Weights, and values of x, that may be fetched meanwhile.
  Next next_weights, next_values;
};

// What a product becomes on its way to y: x sigmoid(1.702 x), or x times the normal distribution's
// integral.
enum class Unary : uint8_t { kNone, kQuickGelu, kGelu };

// Sums of a panel, what its outliers add to them, the bias; then the function; written to y.
struct FinishTask {
  const PackedLayout* layout = nullptr;
  const Activations* activations = nullptr;
  int64_t panel = 0;
  int64_t first_row = 0, rows = 0;    // first_row: a multiple of kRowBlock
  float* sums = nullptr;              // [rows][32]; overwritten
  const Outlier* outliers = nullptr;  // by column, then by k
  int64_t num_outliers = 0;
  Element element = Element::kFloat;  // of y
  Rows y;                             // row 0 is row 0 of x
  bool add = false;                   // to what y holds
  const float* bias = nullptr;        // [N]; null: none
  Unary function = Unary::kNone;
};

}  // namespace llava::ops::cpu
