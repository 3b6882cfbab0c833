#pragma once

// Shapes of AMX tiles, and rows cut into them. As in simd.h, nothing here is shared by two
// instruction sets.

#include <cstdint>

#include <immintrin.h>

namespace llava::ops::cpu::LLAVA_ISA {

constexpr int kTileRows = 16;

// Sums are tiles 0 to 3, x 4 and 5, weights 6 and 7.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t line_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The compiler does not know that tile instructions read memory.
[[gnu::always_inline]] static inline void Written(const void* memory) {
  asm volatile("" : : "r"(memory) : "memory");
}

// `rows` of x in each tile; `unit` bytes along K.
static inline void Configure(int rows, int unit) {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) {
    const bool weights = i >= 6, sums = i < 4;
    shapes.rows[i] = static_cast<uint8_t>(weights ? unit / 4 : rows);
    shapes.line_bytes[i] = static_cast<uint16_t>(weights || sums ? 64 : unit);
  }
  Written(&shapes);
  _tile_loadconfig(&shapes);
}

// Calls work<tiles of rows>(first row, rows) for all, 32 at a time. `kWhole`: it reads and writes
// whole tiles, for which there must be room; else the last tile is as low as its rows are few,
// which costs a change of shapes.
template <bool kWhole, typename Work>
[[gnu::always_inline]] static inline void ForTiles(int64_t begin, int64_t end, int unit,
                                                   int& configured, const Work& work) {
  const auto shape = [&](int rows) {
    if (rows != configured) Configure(rows, unit);
    configured = rows;
  };
  while (begin < end) {
    const int64_t left = end - begin;
    shape(kWhole || left >= kTileRows ? kTileRows : static_cast<int>(left));
    if (left >= 2 * kTileRows || (kWhole && left > kTileRows)) {
      work.template operator()<2>(begin, left < 2 * kTileRows ? left : 2 * kTileRows);
      begin += 2 * kTileRows;
    } else {
      work.template operator()<1>(begin, left < kTileRows ? left : kTileRows);
      begin += kTileRows;
    }
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
