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

// --- bfloat16 ----------------------------------------------------------------------------------

template <int kTiles>
[[gnu::always_inline]] inline void TilesOfPairs(const uint8_t* weights, const uint8_t* values,
                                                int64_t line, int64_t depth, bool first,
                                                float* sums) {
  constexpr int64_t kSumLine = kPanel * 4;
  float* const lower = sums + kTileRows * kPanel;
  if (first) {
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
  for (int64_t k = 0; k < depth; k += 32, weights += 16 * kPanelLine, values += 64) {
    _tile_loadd(6, weights, kPanelLine);
    _tile_loadd(4, values, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weights + 64, kPanelLine);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTiles == 2) {
      _tile_loadd(5, values + kTileRows * line, line);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kSumLine);
  _tile_stored(1, sums + 16, kSumLine);
  if constexpr (kTiles == 2) {
    _tile_stored(2, lower, kSumLine);
    _tile_stored(3, lower + 16, kSumLine);
  }
}

// Blocks follow each other in weights and in rows alike: their sums stay in the tiles.
void MultiplyBFloat16(const PanelTask& task) {
  const PackedLayout& layout = *task.layout;
  const Activations& x = *task.activations;
  const int64_t begin = task.first_block * layout.block;
  const int64_t left = layout.padded_depth - begin, wanted = task.blocks * layout.block;
  const int64_t depth = left < wanted ? left : wanted;
  const uint8_t* const values = x.values + task.first_row * x.line + begin * 2;
  int configured = 0;
  ForTiles<true>(0, task.rows, 64, configured, [&]<int kTiles>(int64_t first, int64_t) {
    TilesOfPairs<kTiles>(task.panel + begin * kPanel * 2, values + first * x.line, x.line, depth,
                         begin == 0, task.sums + first * kPanel);
  });
}

// --- integers ----------------------------------------------------------------------------------

// Sums of a group: [rows][32]. Weights have their offset still.
template <int kTiles>
[[gnu::always_inline]] inline void TilesOfGroup(const uint8_t* weights, const uint8_t* values,
                                                int64_t line, int64_t group, int64_t unit,
                                                int32_t* dots) {
  constexpr int64_t kDotLine = kPanel * 4;
  int32_t* const lower = dots + kTileRows * kPanel;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTiles == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < group; k += unit, weights += unit * kPanel) {
    _tile_loadd(6, weights, kPanelLine);
    _tile_loadd(4, values + k, line);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, weights + 64, kPanelLine);
    _tile_dpbsud(1, 4, 7);
    if constexpr (kTiles == 2) {
      _tile_loadd(5, values + kTileRows * line + k, line);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, dots, kDotLine);
  _tile_stored(1, dots + 16, kDotLine);
  if constexpr (kTiles == 2) {
    _tile_stored(2, lower, kDotLine);
    _tile_stored(3, lower + 16, kDotLine);
  }
}

// Sums of groups that wait to be scaled, while the tiles go on with the next.
struct Pending {
  const int32_t* dots;
  const uint8_t* block;
  const float* scales;
  const int32_t* corrections;
  float* sums;
  int64_t rows;  // 0: nothing
  bool first;
};

[[gnu::always_inline]] inline void Scale(const Pending& pending) {
  if (pending.rows == 0) return;
  const Floats of_weights[2] = {LoadScales(pending.block, 0), LoadScales(pending.block, 1)};
  for (int64_t r = 0; r < pending.rows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = r * kPanel + v * kColumns;
      const Ints dot = LoadAs<Ints>(pending.dots + at) + pending.corrections[r];
      const Floats part =
          __builtin_convertvector(dot, Floats) * (of_weights[v] * pending.scales[r]);
      StoreAs(pending.sums + at, pending.first ? part : LoadAs<Floats>(pending.sums + at) + part);
    }
  }
}

// Nibbles of a group as bytes.
void UnpackNibbles(const uint8_t* from, int64_t group, uint8_t* to) {
  for (int64_t k = 0; k < group; k += 8, from += kPanelLine, to += 2 * kPanelLine) {
    for (int v = 0; v < kVectors; ++v) {
      const Words both = LoadAs<Words>(from + v * 64);
      StoreAs(to + v * 64, both & 0x0F0F0F0F);
      StoreAs(to + kPanelLine + v * 64, both >> 4 & 0x0F0F0F0F);
    }
  }
  Written(to);
}

void MultiplyIntegers(const PanelTask& task) {
  constexpr int64_t kLargestGroup = 128;  // of nibbles
  const PackedLayout& layout = *task.layout;
  const Activations& x = *task.activations;
  const int unit = layout.block < 64 ? static_cast<int>(layout.block) : 64;
  alignas(64) uint8_t bytes[kLargestGroup * kPanel];
  alignas(64) int32_t dots[2][2 * kTileRows * kPanel];
  int configured = 0, turn = 0;
  Pending pending = {};
  for (int64_t row = 0; row < task.rows; row += kRowsAtOnce) {
    const int64_t end = row + kRowsAtOnce < task.rows ? row + kRowsAtOnce : task.rows;
    for (int64_t b = task.first_block; b < task.first_block + task.blocks; ++b) {
      const int64_t line = b * x.rows + task.first_row;
      const uint8_t* const block = task.panel + b * layout.block_bytes;
      const uint8_t* weights = block + kScaleBytes;
      if (layout.format == WeightFormat::kInt4) {
        UnpackNibbles(weights, layout.block, bytes);
        weights = bytes;
      }
      const uint8_t* const values = x.values + task.first_row * x.line + b * layout.block;
      ForTiles<true>(row, end, unit, configured, [&]<int kTiles>(int64_t first, int64_t rows) {
        TilesOfGroup<kTiles>(weights, values + first * x.line, x.line, layout.block, unit,
                             dots[turn]);
        Scale(pending);
        pending = {dots[turn],
                   block,
                   x.scales + line + first,
                   x.corrections + line + first,
                   task.sums + first * kPanel,
                   rows,
                   b == 0};
        turn ^= 1;
      });
    }
  }
  Scale(pending);
}

}  // namespace

bool MultiplyPanelByTiles(const PanelTask& task) {
  if (task.layout->format == WeightFormat::kBFloat16) {
    MultiplyBFloat16(task);
  } else if (IsInteger(task.layout->format) && task.rows > kFewRows) {
    MultiplyIntegers(task);
  } else {
    return false;
  }
  _tile_release();
  return true;
}

}  // namespace llava::ops::cpu::LLAVA_ISA

#endif
