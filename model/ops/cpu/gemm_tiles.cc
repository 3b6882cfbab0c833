// Products of rows with one panel of weights, by AMX: tiles of 16 rows of x, of 16 of W.
//
// Four tiles of sums (32 rows of x, all 32 of the panel) grow at a time. Integer sums of a group
// are those of exact arithmetic once corrected, so that few rows may go by dot-product
// instructions instead. Those of bfloat16 are rounded otherwise than there: all rows go through
// tiles.
#include "model/ops/cpu/gemm_tiles.h"

#ifndef __AMX_TILE__

namespace llava::ops::cpu::LLAVA_ISA {

bool MultiplyPanelByTiles(const PanelTask&) { return false; }

}  // namespace llava::ops::cpu::LLAVA_ISA

#else

#include "model/ops/cpu/amx_tiles.h"
#include "model/ops/cpu/gemm_simd.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

constexpr int64_t kFewRows = 6;             // up to so many, integers go by dot products
constexpr int64_t kRowsAtOnce = 64;         // pass through a group before the next one
constexpr int64_t kPanelLine = 4 * kPanel;  // bytes between rows of a tile of weights

// What is fetched into the second cache beside the work of a step along K: of the weights at hand
// if all rows take them together, else of those that follow.
class Fetching {
 public:
  // 32 rows take so many steps through what `task` has to do, each with `bytes` of the weights.
  Fetching(const PanelTask& task, bool together, int64_t steps, const uint8_t* weights,
           int64_t bytes) {
    const int64_t passes = (task.rows + 2 * kTileRows - 1) / (2 * kTileRows);
    if (together) {
      weights_ = {weights + kAhead, bytes / passes};
    } else {
      weights_ = {task.next_weights.data, bytes / passes};
      values_ = {task.next_values.data, task.next_values.bytes / (passes * steps)};
    }
  }
  [[gnu::always_inline]] void Step() {
    Fetch(weights_);
    Fetch(values_);
  }

 private:
  [[gnu::always_inline]] static void Fetch(Next& next) {
    FetchAhead(next.data, next.bytes);
    next.data += next.bytes;
  }

  Next weights_, values_;  // the next step's
};

// Rows of x that two tiles take.
struct Lines {
  const uint8_t* first;
  const uint8_t* second;
  int64_t line, step;  // bytes from row to row, from one tile to the next along K
};
[[gnu::always_inline]] inline Lines LinesOf(const PanelTask& task, int64_t first, int64_t block,
                                            int64_t bytes, int64_t unit) {
  const int64_t row = task.first_row + first;
  const Activations& x = *task.activations;
  const BlockValues values = ValuesOf(x, row, block, bytes);
  const int64_t second = x.unit == 0 ? kTileRows * x.line : kRowBlock * bytes;
  return {values.data, values.data + second, values.line, x.unit == 0 ? unit : values.step};
}

// --- bfloat16 ----------------------------------------------------------------------------------

template <int kTiles>
[[gnu::always_inline]] inline void TilesOfPairs(const PanelTask& task, int64_t row,
                                                Fetching& fetching) {
  constexpr int64_t kSumLine = kPanel * 4;
  const PackedLayout& layout = *task.layout;
  float* const sums = task.sums + row * kPanel;
  float* const lower = sums + kTileRows * kPanel;
  if (task.first_block == 0) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, kSumLine);
    _tile_loadd(1, sums + 16, kSumLine);
    if constexpr (kTiles == 2) {
      _tile_loadd(2, lower, kSumLine);
      _tile_loadd(3, lower + 16, kSumLine);
    }
  }
  // Blocks follow each other in weights: their sums stay in the tiles.
  const uint8_t* weights = task.panel + task.first_block * layout.block_bytes;
  for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
    Lines x = LinesOf(task, row, b, layout.block * 2, 64);
    const int64_t left = layout.padded_depth - b * layout.block;
    const int64_t depth = left < layout.block ? left : layout.block;
    for (int64_t k = 0; k < depth; k += 32, weights += 16 * kPanelLine) {
      _tile_loadd(6, weights, kPanelLine);
      _tile_loadd(4, x.first, x.line);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, weights + 64, kPanelLine);
      _tile_dpbf16ps(1, 4, 7);
      fetching.Step();
      x.first += x.step;
      if constexpr (kTiles == 2) {
        _tile_loadd(5, x.second, x.line);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        x.second += x.step;
      }
    }
  }
  _tile_stored(0, sums, kSumLine);
  _tile_stored(1, sums + 16, kSumLine);
  if constexpr (kTiles == 2) {
    _tile_stored(2, lower, kSumLine);
    _tile_stored(3, lower + 16, kSumLine);
  }
}

void MultiplyBFloat16(const PanelTask& task) {
  const PackedLayout& layout = *task.layout;
  const int64_t begin = task.first_block * layout.block;
  const int64_t left = layout.padded_depth - begin, wanted = task.blocks * layout.block;
  Fetching fetching(task, task.rows <= 2 * kTileRows, (left < wanted ? left : wanted) / 32,
                    task.panel + begin * kPanel * 2, 16 * kPanelLine);
  int configured = 0;
  ForTiles<true>(0, task.rows, 64, configured, [&]<int kTiles>(int64_t first, int64_t) {
    TilesOfPairs<kTiles>(task, first, fetching);
  });
}

// --- integers ----------------------------------------------------------------------------------

// Sums of a group that wait to be scaled, while the tiles go on with the next.
struct Pending {
  const int32_t* dots = nullptr;
  const uint8_t* block = nullptr;
  const float* scales = nullptr;
  const int32_t* corrections = nullptr;
  float* sums = nullptr;
  int64_t rows = 0;  // in fours: what lies behind the last one is nobody's
  bool first = true;
};

// Scales them some rows at a time.
template <bool kNibbles>
class Scaling {
 public:
  [[gnu::always_inline]] explicit Scaling(const Pending& pending)
      : pending_(pending),
        low_(pending.rows == 0 ? Floats{} : LoadScales(pending.block, 0)),
        high_(pending.rows == 0 ? Floats{} : LoadScales(pending.block, 1)) {}

  [[gnu::always_inline]] void Rows(int64_t most) {
    const int64_t stop = row_ + most < pending_.rows ? row_ + most : pending_.rows;
    if (pending_.first) {
#pragma GCC unroll 4
      for (; row_ < stop; ++row_) Row<true>(row_);
    } else {
#pragma GCC unroll 4
      for (; row_ < stop; ++row_) Row<false>(row_);
    }
  }

 private:
  static_assert(kVectors == 2);

  template <bool kFirst>
  [[gnu::always_inline]] void Row(int64_t row) const {
    const int32_t* const dots = pending_.dots + row * kPanel;
    float* const sums = pending_.sums + row * kPanel;
    Ints low = LoadAs<Ints>(dots), high = LoadAs<Ints>(dots + kColumns);
    if constexpr (!kNibbles) {  // those have lost their offset already
      const Ints correction = Ints{} + pending_.corrections[row];
      low += correction;
      high += correction;
    }
    const Floats scale = Floats{} + pending_.scales[row];
    const Floats a = __builtin_convertvector(low, Floats) * (low_ * scale);
    const Floats b = __builtin_convertvector(high, Floats) * (high_ * scale);
    StoreAs(sums, kFirst ? a : LoadAs<Floats>(sums) + a);
    StoreAs(sums + kColumns, kFirst ? b : LoadAs<Floats>(sums + kColumns) + b);
  }

  const Pending pending_;
  const Floats low_, high_;  // scales of weights
  int64_t row_ = 0;
};

// A tile of sums += x times weights: signed nibbles, or bytes with their offset still.
#define LLAVA_DOT(sums, x, weights) \
  if constexpr (kNibbles) {         \
    _tile_dpbssd(sums, x, weights); \
  } else {                          \
    _tile_dpbsud(sums, x, weights); \
  }

// Sums of a group: [rows][32]. Between tiles, which take long, what is pending gets done.
template <bool kNibbles, int kTiles>
[[gnu::always_inline]] inline void TilesOfGroup(const uint8_t* weights, Lines x, int64_t group,
                                                int64_t unit, int32_t* dots, const Pending& pending,
                                                Fetching& fetching) {
  constexpr int64_t kDotLine = kPanel * 4;
  int32_t* const lower = dots + kTileRows * kPanel;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTiles == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  Scaling<kNibbles> scaling(pending);
  const int64_t rows = pending.rows >> (group <= 64 ? 1 : 2);  // at a time; of long groups fewer
  for (int64_t k = 0; k < group; k += unit, weights += unit * kPanel) {
    _tile_loadd(6, weights, kPanelLine);
    _tile_loadd(4, x.first, x.line);
    LLAVA_DOT(0, 4, 6)
    _tile_loadd(7, weights + 64, kPanelLine);
    LLAVA_DOT(1, 4, 7)
    fetching.Step();
    scaling.Rows(rows);
    x.first += x.step;
    if constexpr (kTiles == 2) {
      _tile_loadd(5, x.second, x.line);
      LLAVA_DOT(2, 5, 6)
      LLAVA_DOT(3, 5, 7)
      x.second += x.step;
    }
    scaling.Rows(rows);
  }
  _tile_stored(0, dots, kDotLine);
  _tile_stored(1, dots + 16, kDotLine);
  if constexpr (kTiles == 2) {
    _tile_stored(2, lower, kDotLine);
    _tile_stored(3, lower + 16, kDotLine);
  }
}

#undef LLAVA_DOT

// Nibbles of a group as signed bytes.
[[gnu::always_inline]] inline void UnpackNibbles(const uint8_t* from, int64_t group, uint8_t* to) {
  using Bytes = int8_t __attribute__((vector_size(64)));
  for (int64_t k = 0; k < group; k += 8, from += kPanelLine, to += 2 * kPanelLine) {
    for (int v = 0; v < kVectors; ++v) {
      const Words both = LoadAs<Words>(from + v * 64);
      StoreAs(to + v * 64, (Bytes)(both & 0x0F0F0F0F) - 8);
      StoreAs(to + kPanelLine + v * 64, (Bytes)(both >> 4 & 0x0F0F0F0F) - 8);
    }
  }
  Written(to);
}

template <bool kNibbles>
void MultiplyIntegers(const PanelTask& task) {
  constexpr int64_t kLargestGroup = 128;  // of nibbles
  const PackedLayout& layout = *task.layout;
  const Activations& x = *task.activations;
  const int unit = layout.block < 64 ? static_cast<int>(layout.block) : 64;
  alignas(64) uint8_t bytes[kNibbles ? kLargestGroup * kPanel : 1];
  alignas(64) int32_t dots[2][2 * kTileRows * kPanel];
  int configured = 0, turn = 0;
  Pending pending;
  Fetching fetching(task, task.rows <= kRowsAtOnce, task.blocks * layout.block / unit,
                    task.panel + task.first_block * layout.block_bytes,
                    unit * kPanel / (kNibbles ? 2 : 1));
  for (int64_t row = 0; row < task.rows; row += kRowsAtOnce) {
    const int64_t end = row + kRowsAtOnce < task.rows ? row + kRowsAtOnce : task.rows;
    for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
      const int64_t line = b * x.rows + task.first_row;
      const uint8_t* const block = task.panel + b * layout.block_bytes;
      const uint8_t* weights = block + kScaleBytes;
      if constexpr (kNibbles) {
        UnpackNibbles(weights, layout.block, bytes);
        weights = bytes;
      }
      ForTiles<true>(row, end, unit, configured, [&]<int kTiles>(int64_t first, int64_t rows) {
        TilesOfGroup<kNibbles, kTiles>(weights, LinesOf(task, first, b, layout.block, unit),
                                       layout.block, unit, dots[turn], pending, fetching);
        pending = {dots[turn],
                   block,
                   x.scales + line + first,
                   x.corrections + line + first,
                   task.sums + first * kPanel,
                   (rows + 3) / 4 * 4,
                   b == 0};
        turn ^= 1;
      });
    }
  }
  Scaling<kNibbles>(pending).Rows(pending.rows);
}

}  // namespace

bool MultiplyPanelByTiles(const PanelTask& task) {
  if (task.layout->format == WeightFormat::kBFloat16) {
    MultiplyBFloat16(task);
  } else if (IsInteger(task.layout->format) && task.rows > kFewRows) {
    if (task.layout->format == WeightFormat::kInt4) {
      MultiplyIntegers<true>(task);
    } else {
      MultiplyIntegers<false>(task);
    }
  } else {
    return false;
  }
  _tile_release();
  return true;
}

}  // namespace llava::ops::cpu::LLAVA_ISA

#endif
