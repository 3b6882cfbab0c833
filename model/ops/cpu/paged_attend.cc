// Attention over keys and values in blocks: one key/value head for all its query heads.
//
// Rows (a token and a query head) go some at a time through a range of keys: all scores, then the
// softmax, then weighted values. Elements are widened in registers when few rows take them, else
// once for all into scratch; either way a row meets the same operations in the same order, and
// where some rows of a tile see more than others, those are gone on with alone.
#include "model/ops/cpu/gemm_simd.h"
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/paged_simd.h"
#include "model/ops/cpu/paged_tiles.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;    // at a time,
constexpr int kBlocks = 2;  // against so many blocks of keys at a time,
constexpr int kParts = 2;   // or so many vectors of values: so that sums stay in registers
#elif defined(__AVX2__)
constexpr int kRows = 4;
constexpr int kBlocks = 1;
constexpr int kParts = 2;
#else
constexpr int kRows = 2;
constexpr int kBlocks = 1;
constexpr int kParts = 4;
#endif
constexpr int kSplit = kLanes / kColumns;  // registers of 16 lanes
constexpr int64_t kRangeBlocks = kRangeTokens / kBlockTokens;
// Rows that make it pay to widen a range for all.
constexpr int64_t kManyRows = 2 * kRows + 1;

[[gnu::always_inline]] inline Floats Spread(float x) { return x - Floats{}; }

// Keys and values of a range.
struct Range {
  const uint8_t* keys[kRangeBlocks];
  const uint8_t* values[kRangeBlocks];
  const float* key_scales[kRangeBlocks];
  const float* value_scales[kRangeBlocks];
  bool scaled;
  int64_t width;  // values from one token to the next
};

// --- elements ----------------------------------------------------------------------------------

// Of two neighbours: dimensions of keys, tokens of values. `at` is even.
struct Pairs {
  Floats first, second;
};

struct FloatSource {
  [[gnu::always_inline]] static inline Pairs Keys(const uint8_t* keys, int64_t d, int part) {
    const uint8_t* at = keys + (d * kLanes + part * kColumns) * 4;
    return {LoadAs<Floats>(at), LoadAs<Floats>(at + kLanes * 4)};
  }
  [[gnu::always_inline]] static inline Pairs Values(const uint8_t* values, int64_t width,
                                                    int64_t token, int64_t column) {
    const uint8_t* at = values + (token * width + column) * 4;
    return {LoadAs<Floats>(at), LoadAs<Floats>(at + width * 4)};
  }
};

struct BFloat16Source {
  [[gnu::always_inline]] static inline Pairs Widen(const uint8_t* from) {
    const Words w = LoadAs<Words>(from);
    return {(Floats)(w << 16), (Floats)(w & 0xFFFF0000)};
  }
  [[gnu::always_inline]] static inline Pairs Keys(const uint8_t* keys, int64_t d, int part) {
    return Widen(keys + (d / 2 * kLanes + part * kColumns) * 4);
  }
  [[gnu::always_inline]] static inline Pairs Values(const uint8_t* values, int64_t width,
                                                    int64_t token, int64_t column) {
    return Widen(values + (token / 2 * width + column) * 4);
  }
};

struct Int8Source {
  [[gnu::always_inline]] static inline Floats Widen(const uint8_t* from) {
#if defined(__AVX512F__)
    const Ints wide =
        (Ints)_mm512_maskz_cvtepi8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
    const Ints wide = (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    using Bytes = int8_t __attribute__((vector_size(kColumns)));
    const Ints wide = __builtin_convertvector(LoadAs<Bytes>(from), Ints);
#endif
    return __builtin_convertvector(wide, Floats);
  }
  [[gnu::always_inline]] static inline Pairs Keys(const uint8_t* keys, int64_t d, int part) {
    const uint8_t* at = keys + d * kLanes + part * kColumns;
    return {Widen(at), Widen(at + kLanes)};
  }
  [[gnu::always_inline]] static inline Pairs Values(const uint8_t* values, int64_t width,
                                                    int64_t token, int64_t column) {
    const uint8_t* at = values + token * width + column;
    return {Widen(at), Widen(at + width)};
  }
};

// --- the three steps of a tile of rows against a range ------------------------------------------

// scores[r][16 block ..] of C blocks.
template <typename Source, int R, int C>
[[gnu::always_inline]] inline void ScoresOfBlocks(const Range& range, int64_t block,
                                                  const float* rows, int64_t width, int64_t dim,
                                                  float* scores) {
  Floats sums[R][C][kSplit];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
      for (int s = 0; s < kSplit; ++s) sums[r][c][s] = Floats{};
    }
  }
  for (int64_t d = 0; d < dim; d += 2) {
    Pairs keys[C][kSplit];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
      for (int s = 0; s < kSplit; ++s) keys[c][s] = Source::Keys(range.keys[block + c], d, s);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Floats a = Spread(rows[r * width + d]), b = Spread(rows[r * width + d + 1]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
        for (int s = 0; s < kSplit; ++s) {
          sums[r][c][s] = MultiplyAdd(a, keys[c][s].first, sums[r][c][s]);
          sums[r][c][s] = MultiplyAdd(b, keys[c][s].second, sums[r][c][s]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
      for (int s = 0; s < kSplit; ++s) {
        StoreAs(scores + r * kRangeTokens + (block + c) * kLanes + s * kColumns, sums[r][c][s]);
      }
    }
  }
}

template <typename Source, int R>
void Scores(const Range& range, int64_t blocks, const float* rows, int64_t width, int64_t dim,
            float* scores) {
  constexpr int kAtOnce = R * 2 <= kRows ? 2 * kBlocks : kBlocks;
  int64_t block = 0;
  for (; block + kAtOnce <= blocks; block += kAtOnce) {
    ScoresOfBlocks<Source, R, kAtOnce>(range, block, rows, width, dim, scores);
  }
  for (; block < blocks; ++block) {
    ScoresOfBlocks<Source, R, 1>(range, block, rows, width, dim, scores);
  }
}

// sums[r][column ..] (+)= weights[r][begin .. end) times C vectors of values; from 0 on if `begin`
// is 0.
template <typename Source, int R, int C>
[[gnu::always_inline]] inline void AddColumns(const Range& range, int64_t begin, int64_t end,
                                              const float* weights, int64_t column, float* sums,
                                              int64_t line) {
  Floats sum[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      sum[r][c] = begin == 0 ? Floats{} : LoadAs<Floats>(sums + r * line + column + c * kColumns);
    }
  }
  for (int64_t key = begin; key < end;) {
    const uint8_t* const values = range.values[key / kBlockTokens];
    const int64_t block = key / kBlockTokens * kBlockTokens;
    const int64_t stop = block + kBlockTokens < end ? block + kBlockTokens : end;
    const auto one = [&](int64_t at) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const Pairs pair =
            Source::Values(values, range.width, (at - block) & ~1, column + c * kColumns);
        const Floats value = at % 2 == 0 ? pair.first : pair.second;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          sum[r][c] = MultiplyAdd(Spread(weights[r * kRangeTokens + at]), value, sum[r][c]);
        }
      }
    };
    if (key % 2 != 0) one(key++);
    for (; key + 2 <= stop; key += 2) {
      Pairs pair[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        pair[c] = Source::Values(values, range.width, key - block, column + c * kColumns);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Floats a = Spread(weights[r * kRangeTokens + key]);
        const Floats b = Spread(weights[r * kRangeTokens + key + 1]);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
          sum[r][c] = MultiplyAdd(a, pair[c].first, sum[r][c]);
          sum[r][c] = MultiplyAdd(b, pair[c].second, sum[r][c]);
        }
      }
    }
    if (key < stop) one(key++);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) StoreAs(sums + r * line + column + c * kColumns, sum[r][c]);
  }
}

template <typename Source, int R>
void AddValues(const Range& range, int64_t begin, int64_t end, const float* weights, int64_t width,
               float* sums, int64_t line) {
  constexpr int kAtOnce = R * 2 <= kRows ? 2 * kParts : kParts;
  int64_t column = 0;
  for (; column + kAtOnce * kColumns <= width; column += kAtOnce * kColumns) {
    AddColumns<Source, R, kAtOnce>(range, begin, end, weights, column, sums, line);
  }
  for (; column < width; column += kColumns) {
    AddColumns<Source, R, 1>(range, begin, end, weights, column, sums, line);
  }
}

// --- ranges ------------------------------------------------------------------------------------

struct Layout {
  Layout(const KvLayout& kv, int64_t rows)
      : width(Padded(kv.head_dim)),
        line(width + kLanes),
        q(0),
        scores(q + rows * width),
        part(scores + kRows * kRangeTokens),
        keys(part + kRows * line),
        values(keys + kv.head_dim * kRangeTokens),
        size(values + width * kRangeTokens) {}
  int64_t width, line, q, scores, part, keys, values, size;
};

// Widens the first `blocks` blocks of the range, which from then on lies in scratch.
template <typename Source>
void Widen(Range& range, int64_t blocks, int64_t dim, const Layout& at, float* scratch) {
  for (int64_t b = 0; b < blocks; ++b) {
    float* const keys = scratch + at.keys + b * dim * kLanes;
    float* const values = scratch + at.values + b * at.width * kBlockTokens;
    for (int64_t d = 0; d < dim; d += 2) {
      for (int s = 0; s < kSplit; ++s) {
        const Pairs pair = Source::Keys(range.keys[b], d, s);
        StoreAs(keys + d * kLanes + s * kColumns, pair.first);
        StoreAs(keys + (d + 1) * kLanes + s * kColumns, pair.second);
      }
    }
    for (int64_t t = 0; t < kBlockTokens; t += 2) {
      const auto part = [&](int64_t column) {
        const Pairs pair = Source::Values(range.values[b], dim, t, column);
        StoreAs(values + t * at.width + column, pair.first);
        StoreAs(values + (t + 1) * at.width + column, pair.second);
      };
      for (int64_t c = dim / kColumns * kColumns; c < at.width; c += kColumns) {
        StoreAs(values + t * at.width + c, Floats{});
        StoreAs(values + (t + 1) * at.width + c, Floats{});
      }
      for (int64_t c = 0; c + kColumns <= dim; c += kColumns) part(c);
      // Nothing is read behind a row: it may be the end of all memory.
      if (dim % kColumns != 0) part(dim - kColumns);
    }
    range.keys[b] = reinterpret_cast<const uint8_t*>(keys);
    range.values[b] = reinterpret_cast<const uint8_t*>(values);
  }
  range.width = at.width;
}

// R rows from `row` on, all of which see some of the range.
template <typename Source, int R>
void Tile(const Range& range, const HeadRows& rows, int64_t row, int64_t dim, const Layout& at,
          bool first, float* scratch, float* sums) {
  float* const scores = scratch + at.scores;
  float* const part = first ? sums + row * at.line : scratch + at.part;
  const int64_t all = rows.visible(row), most = rows.visible(row + R - 1);
  Scores<Source, R>(range, (most + kBlockTokens - 1) / kBlockTokens,
                    scratch + at.q + row * at.width, at.width, dim, scores);
  for (int r = 0; r < R; ++r) {
    float* const line = scores + r * kRangeTokens;
    const int64_t visible = rows.visible(row + r);
    const Softmax softmax =
        range.scaled
            ? Weigh(visible, range.key_scales, line,
                    [&](int64_t i, Vector p) {
                      Store(line + i, p * Load(range.value_scales[i / kLanes]));
                    })
            : Weigh(visible, nullptr, line, [&](int64_t i, Vector p) { Store(line + i, p); });
    part[r * at.line + at.width] = softmax.peak;
    part[r * at.line + at.width + 1] = softmax.total;
  }
  AddValues<Source, R>(range, 0, all, scores, at.width, part, at.line);
  for (int r = 0; r < R; ++r) {
    const int64_t visible = rows.visible(row + r);
    if (visible > all) {
      AddValues<Source, 1>(range, all, visible, scores + r * kRangeTokens, at.width,
                           part + r * at.line, at.line);
    }
    if (!first) Merge(sums + (row + r) * at.line, part + r * at.line, at.width);
  }
}

template <typename Source>
void Tiles(const Range& range, const HeadRows& rows, int64_t row, int64_t end, int64_t dim,
           const Layout& at, bool first, float* scratch, float* sums) {
  const auto step = [&]<int R>() {
    for (; row + R <= end; row += R) {
      Tile<Source, R>(range, rows, row, dim, at, first, scratch, sums);
    }
  };
  if constexpr (kRows >= 8) step.template operator()<8>();
  if constexpr (kRows >= 4) step.template operator()<4>();
  step.template operator()<2>();
  step.template operator()<1>();
}

template <typename Source>
void AttendAs(const AttendTask& task) {
  constexpr bool kFloats = __is_same(Source, FloatSource);
  const KvLayout& layout = *task.blocks.layout;
  const int64_t dim = layout.head_dim, group = task.group, num_rows = task.tokens.count * group;
  const Layout at(layout, num_rows);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t t = row / group, angle = (task.tokens.position + t) * (dim / 2);
    Turn(task.q + t * task.stride + row % group * dim, task.tokens.cosine + angle,
         task.tokens.sine + angle, dim / 2, scale, task.scratch + at.q + row * at.width);
  }
  for (int64_t index = task.first_range; index < task.first_range + task.ranges; ++index) {
    const int64_t begin = index * kRangeTokens;
    const HeadRows rows{task.tokens.position - begin, group};
    const int64_t blocks = (rows.visible(num_rows - 1) + kBlockTokens - 1) / kBlockTokens;
    const int64_t row = rows.position < 0 ? -rows.position * group : 0;
    Range range;
    range.width = dim;
    range.scaled = layout.element == KvElement::kInt8;
    for (int64_t b = 0; b < blocks; ++b) {
      const HeadParts parts = PartsOf(task.blocks, index * kRangeBlocks + b, task.kv_head);
      range.keys[b] = parts.keys;
      range.values[b] = parts.values;
      range.key_scales[b] = parts.key_scales;
      range.value_scales[b] = parts.value_scales;
    }
    const bool first = index == task.first_range;
    if (dim % kLanes == 0 && (kFloats || num_rows - row < kManyRows)) {
      Tiles<Source>(range, rows, row, num_rows, dim, at, first, task.scratch, task.sums);
    } else {
      Widen<Source>(range, blocks, dim, at, task.scratch);
      Tiles<FloatSource>(range, rows, row, num_rows, dim, at, first, task.scratch, task.sums);
    }
  }
}

void Write(const float* sums, int64_t dim, int64_t width, float* out) {
  const float inverse = 1.0f / sums[width + 1];
  for (int64_t i = 0; i < dim; i += kLanes) {
    const Vector v = Load(sums + i) * inverse + 0.0f;  // -0 becomes 0
    if (i + kLanes <= dim) {
      Store(out + i, v);
    } else {
      StorePart(out + i, v, dim - i);
    }
  }
}

}  // namespace

int64_t AttendScratch(const KvLayout& layout, int64_t rows) {
  const int64_t tiles = TilesScratch(layout, rows);
  return tiles > 0 ? tiles : Layout(layout, rows).size;
}

void Attend(const AttendTask& task) {
  if (AttendByTiles(task)) return;
  switch (task.blocks.layout->element) {
    case KvElement::kFloat:
      return AttendAs<FloatSource>(task);
    case KvElement::kBFloat16:
      return AttendAs<BFloat16Source>(task);
    case KvElement::kInt8:
      return AttendAs<Int8Source>(task);
  }
}

void FinishAttend(const FinishAttendTask& task) {
  const int64_t width = Padded(task.head_dim), line = width + kLanes;
  for (int64_t row = 0; row < task.tokens * task.group; ++row) {
    const int64_t t = row / task.group;
    float* const sums = task.sums + row * line;
    if (task.parts > 1) {
      const int64_t ranges = (task.position + t) / kRangeTokens + 1;
      for (int64_t i = 1; i < ranges; ++i) Merge(sums, sums + i * task.part_stride, width);
    }
    Write(sums, task.head_dim, width,
          task.out + t * task.stride + row % task.group * task.head_dim);
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
