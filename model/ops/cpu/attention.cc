// Self-attention of many short, branching sequences, forward and backward.
//
// Keys and values of a block are unpacked once for all query heads that share them. Rows of queries
// go four at a time: scores against transposed keys (a vector holds 16 keys), so that nothing is
// summed across lanes.
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/simd.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

constexpr int kRows = 4;  // of queries at a time

constexpr int64_t Padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// Where things lie in the scratch memory; all widths are multiples of 16.
struct Layout {
  Layout(const AttentionBlock& block, bool backward)
      : width(Padded(block.head_dim)), columns(Padded(block.tokens) + kLanes) {
    int64_t own = 0, shared = 0;
    for (int64_t i = 0; i < block.num_stretches; ++i) {
      const Stretch& stretch = block.stretches[i];
      if (stretch.tokens > own) own = stretch.tokens;
      if (stretch.shared > shared) shared = stretch.shared;
    }
    seen = Padded(shared) + Padded(own + kRows);
    const int64_t rows = block.tokens * width, turned = width * columns, scores = kRows * seen;
    const auto take = [this](int64_t floats) {
      const int64_t at = size;
      size += floats;
      return at;
    };
    q = take(rows);
    k = take(rows);
    v = take(rows);
    keys = take(turned);
    probabilities = take(scores);
    if (!backward) return;
    values = take(turned);
    of_out = take(rows);
    of_k = take(rows);
    of_v = take(rows);
    of_scores = take(scores);
    line = take(width);
  }
  int64_t width, columns;
  int64_t seen = 0;  // scores of a row: of the shared keys, then of the stretch's own
  int64_t size = 0;
  int64_t q = 0, k = 0, v = 0, keys = 0, probabilities = 0;
  int64_t values = 0, of_out = 0, of_k = 0, of_v = 0, of_scores = 0, line = 0;
};

const void* At(const void* data, Element element, int64_t index) {
  return static_cast<const char*>(data) + index * BytesOf(element);
}
void* At(void* data, Element element, int64_t index) {
  return static_cast<char*>(data) + index * BytesOf(element);
}

template <typename T>
void UnpackRow(const T* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) Store(to + i, Load(from + i));
  if (i < size) Store(to + i, LoadPart(from + i, size - i));
}
// Zeros up to a multiple of 16 behind the row.
void Unpack(Element element, const void* from, int64_t size, float* to) {
  if (element == Element::kFloat) {
    UnpackRow(static_cast<const float*>(from), size, to);
  } else {
    UnpackRow(static_cast<const BFloat16*>(from), size, to);
  }
}

template <typename T>
void PackRow(const float* from, int64_t size, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) Store(to + i, Load(from + i));
  if (i < size) StorePart(to + i, Load(from + i), size - i);
}
void Pack(Element element, const float* from, int64_t size, void* to) {
  if (element == Element::kFloat) {
    PackRow(from, size, static_cast<float*>(to));
  } else {
    PackRow(from, size, static_cast<BFloat16*>(to));
  }
}

// Turns the pairs (i, i + half) by the angles of a row, or back (sign -1); then scales.
void TurnRow(float* row, const float* cosine, const float* sine, int64_t half, float sign,
             float scale) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = row[i], b = row[i + half], s = sign * sine[i];
    row[i] = (a * cosine[i] - b * s) * scale;
    row[i + half] = (b * cosine[i] + a * s) * scale;
  }
}

// [rows, width] -> [width, columns].
void Transpose(const float* from, int64_t rows, int64_t width, int64_t columns, float* to) {
  for (int64_t d = 0; d < width; ++d) {
    for (int64_t t = 0; t < rows; ++t) to[d * columns + t] = from[t * width + d];
    for (int64_t t = rows; t < columns; ++t) to[d * columns + t] = 0;
  }
}

// scores[r][0 .. Padded(count)) of R rows against keys [width, columns] from column `first` on.
template <int R>
[[gnu::always_inline]] inline void Scores(const float* rows, int64_t width, int64_t used,
                                          const float* keys, int64_t columns, int64_t first,
                                          int64_t count, float* scores, int64_t seen) {
  int64_t key = 0;
  for (; key + kLanes < count; key += 2 * kLanes) {  // two vectors of keys at once
    Vector low[R] = {}, high[R] = {};
    for (int64_t d = 0; d < used; ++d) {
      const float* line = keys + d * columns + first + key;
      const Vector a = Load(line), b = Load(line + kLanes);
      for (int r = 0; r < R; ++r) {
        low[r] += rows[r * width + d] * a;
        high[r] += rows[r * width + d] * b;
      }
    }
    for (int r = 0; r < R; ++r) {
      Store(scores + r * seen + key, low[r]);
      Store(scores + r * seen + key + kLanes, high[r]);
    }
  }
  if (key >= count) return;
  Vector sum[R] = {};
  for (int64_t d = 0; d < used; ++d) {
    const Vector a = Load(keys + d * columns + first + key);
    for (int r = 0; r < R; ++r) sum[r] += rows[r * width + d] * a;
  }
  for (int r = 0; r < R; ++r) Store(scores + r * seen + key, sum[r]);
}

// sums[r] += weights[r][0 .. count) times lines [count, width].
template <int R>
[[gnu::always_inline]] inline void AddWeighted(const float* weights, int64_t seen,
                                               const float* lines, int64_t count, int64_t width,
                                               int64_t column, Vector (&sums)[R]) {
  for (int64_t key = 0; key < count; ++key) {
    const Vector line = Load(lines + key * width + column);
    for (int r = 0; r < R; ++r) sums[r] += weights[r * seen + key] * line;
  }
}

// lines[key] += the sum over r of weights[r][key] * rows[r].
template <int R>
[[gnu::always_inline]] inline void AddOuter(const float* weights, int64_t seen, const float* rows,
                                            int64_t width, int64_t count, float* lines) {
  for (int64_t column = 0; column < width; column += kLanes) {
    Vector row[R];
    for (int r = 0; r < R; ++r) row[r] = Load(rows + r * width + column);
    for (int64_t key = 0; key < count; ++key) {
      float* line = lines + key * width + column;
      Vector sum = Load(line);
      for (int r = 0; r < R; ++r) sum += weights[r * seen + key] * row[r];
      Store(line, sum);
    }
  }
}

// The scores from `count` on become -inf, up to the next multiple of 16.
[[gnu::always_inline]] inline void Hide(float* scores, int64_t count, int64_t padded) {
  constexpr float kNever = -__builtin_inff();
  for (int64_t i = count / kLanes * kLanes; i < padded; i += kLanes) {
    const Vector v = Load(scores + i);
    Store(scores + i,
          kLane + static_cast<int32_t>(i) < static_cast<int32_t>(count) ? v : Vector{} + kNever);
  }
}

// What R rows of a stretch see: first the shared keys, then their own.
struct Sight {
  int64_t shared_first, shared;                      // first shared row in the block, and how many
  int64_t own_first;                                 // first row of the stretch in the block
  int64_t row;                                       // first of the R rows, in the stretch
  int64_t own;                                       // own keys that the last of them sees
  int64_t own_at() const { return Padded(shared); }  // where their scores begin
  int64_t end() const { return own_at() + Padded(own); }
};

template <int R>
[[gnu::always_inline]] inline void HideUnseen(const Sight& sight, float* scores, int64_t seen) {
  for (int r = 0; r < R; ++r) {
    float* line = scores + r * seen;
    Hide(line, sight.shared, Padded(sight.shared));
    Hide(line + sight.own_at(), sight.row + r + 1, Padded(sight.own));
  }
}

template <int R>
[[gnu::always_inline]] inline void ScoresOf(const Sight& sight, const Layout& at, int64_t used,
                                            const float* rows, const float* turned, float* scores) {
  Scores<R>(rows, at.width, used, turned, at.columns, sight.shared_first, sight.shared, scores,
            at.seen);
  Scores<R>(rows, at.width, used, turned, at.columns, sight.own_first, sight.own,
            scores + sight.own_at(), at.seen);
}

template <int R>
[[gnu::always_inline]] inline void WeightedOf(const Sight& sight, const Layout& at,
                                              const float* weights, const float* lines,
                                              int64_t column, Vector (&sums)[R]) {
  AddWeighted<R>(weights, at.seen, lines + sight.shared_first * at.width, sight.shared, at.width,
                 column, sums);
  AddWeighted<R>(weights + sight.own_at(), at.seen, lines + sight.own_first * at.width, sight.own,
                 at.width, column, sums);
}

template <int R>
[[gnu::always_inline]] inline void OuterOf(const Sight& sight, const Layout& at,
                                           const float* weights, const float* rows, float* lines) {
  AddOuter<R>(weights, at.seen, rows, at.width, sight.shared,
              lines + sight.shared_first * at.width);
  AddOuter<R>(weights + sight.own_at(), at.seen, rows, at.width, sight.own,
              lines + sight.own_first * at.width);
}

// Calls work<R>(sight, first row in the block) for all rows of all stretches.
template <typename Work>
void ForRows(const AttentionBlock& block, const Work& work) {
  for (int64_t i = 0; i < block.num_stretches; ++i) {
    const Stretch& stretch = block.stretches[i];
    Sight sight{stretch.shared_begin - block.begin, stretch.shared, stretch.begin - block.begin, 0,
                0};
    if (stretch.shared == 0) sight.shared_first = 0;
    for (; sight.row < stretch.tokens; sight.row += kRows) {
      const int64_t rows = stretch.tokens - sight.row < kRows ? stretch.tokens - sight.row : kRows;
      sight.own = sight.row + rows;
      const int64_t first = sight.own_first + sight.row;
      switch (rows) {
        case 1:
          work.template operator()<1>(sight, first);
          break;
        case 2:
          work.template operator()<2>(sight, first);
          break;
        case 3:
          work.template operator()<3>(sight, first);
          break;
        default:
          work.template operator()<kRows>(sight, first);
      }
    }
  }
}

// Rows of one head, as floats.
void UnpackHead(const AttentionBlock& block, const ConstRows& rows, int64_t head, int64_t width,
                float* to) {
  for (int64_t t = 0; t < block.tokens; ++t) {
    const int64_t index = (block.begin + t) * rows.stride + head * block.head_dim;
    Unpack(block.element, At(rows.data, block.element, index), block.head_dim, to + t * width);
  }
}
void TurnHead(const AttentionBlock& block, int64_t width, float sign, float scale, float* rows) {
  const int64_t half = block.head_dim / 2;
  for (int64_t t = 0; t < block.tokens; ++t) {
    const int64_t angle = (block.begin + t) * half;
    TurnRow(rows + t * width, block.cosine + angle, block.sine + angle, half, sign, scale);
  }
}
void PackHead(const AttentionBlock& block, const float* from, int64_t width, int64_t head,
              const Rows& rows) {
  for (int64_t t = 0; t < block.tokens; ++t) {
    const int64_t index = (block.begin + t) * rows.stride + head * block.head_dim;
    Pack(block.element, from + t * width, block.head_dim, At(rows.data, block.element, index));
  }
}

float ScaleOf(const AttentionBlock& block) {
  return 1.0f / __builtin_sqrtf(static_cast<float>(block.head_dim));
}

void UnpackKeys(const AttentionBlock& block, int64_t kv_head, const Layout& at, float* scratch) {
  UnpackHead(block, block.k, kv_head, at.width, scratch + at.k);
  TurnHead(block, at.width, 1, 1, scratch + at.k);
  Transpose(scratch + at.k, block.tokens, at.width, at.columns, scratch + at.keys);
  UnpackHead(block, block.v, kv_head, at.width, scratch + at.v);
}
void UnpackQueries(const AttentionBlock& block, int64_t head, const Layout& at, float* scratch) {
  UnpackHead(block, block.q, head, at.width, scratch + at.q);
  TurnHead(block, at.width, 1, ScaleOf(block), scratch + at.q);
}

}  // namespace

int64_t AttentionScratch(const AttentionBlock& block, bool backward) {
  return Layout(block, backward).size;
}

void Attention(const AttentionBlock& block, int64_t kv_head, float* scratch) {
  const Layout at(block, false);
  UnpackKeys(block, kv_head, at, scratch);
  const int64_t group = block.heads / block.kv_heads;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    UnpackQueries(block, head, at, scratch);
    ForRows(block, [&]<int R>(const Sight& sight, int64_t first) {
      float* scores = scratch + at.probabilities;
      ScoresOf<R>(sight, at, block.head_dim, scratch + at.q + first * at.width, scratch + at.keys,
                  scores);
      HideUnseen<R>(sight, scores, at.seen);
      for (int r = 0; r < R; ++r) {
        float* line = scores + r * at.seen;
        Vector most = Load(line);
        for (int64_t i = kLanes; i < sight.end(); i += kLanes) most = Max(most, Load(line + i));
        const float peak = Largest(most);
        Vector sum = {};
        for (int64_t i = 0; i < sight.end(); i += kLanes) {
          const Vector p = Exp(Load(line + i) - peak);
          Store(line + i, p);
          sum += p;
        }
        const float total = Sum(sum);
        for (int64_t i = 0; i < sight.end(); i += kLanes) {
          Store(line + i, Load(line + i) * (1.0f / total));
        }
        block.log_sum[(block.begin + first + r) * block.heads + head] =
            peak + __builtin_logf(total);
      }
      // The queries of these rows are used up: their place takes the result.
      float* out = scratch + at.q + first * at.width;
      for (int64_t column = 0; column < at.width; column += kLanes) {
        Vector sums[R] = {};
        WeightedOf<R>(sight, at, scores, scratch + at.v, column, sums);
        for (int r = 0; r < R; ++r) Store(out + r * at.width + column, sums[r]);
      }
    });
    PackHead(block, scratch + at.q, at.width, head, {block.out, block.out_stride});
  }
}

void AttentionBackward(const AttentionBlock& block, int64_t kv_head,
                       const AttentionGradients& gradients, float* scratch) {
  const Layout at(block, true);
  UnpackKeys(block, kv_head, at, scratch);
  Transpose(scratch + at.v, block.tokens, at.width, at.columns, scratch + at.values);
  __builtin_memset(scratch + at.of_k, 0, block.tokens * at.width * sizeof(float));
  __builtin_memset(scratch + at.of_v, 0, block.tokens * at.width * sizeof(float));
  const int64_t group = block.heads / block.kv_heads;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    UnpackQueries(block, head, at, scratch);
    UnpackHead(block, {gradients.out, block.out_stride}, head, at.width, scratch + at.of_out);
    ForRows(block, [&]<int R>(const Sight& sight, int64_t first) {
      float* rows = scratch + at.q + first * at.width;
      const float* of_out = scratch + at.of_out + first * at.width;
      float* p = scratch + at.probabilities;
      float* of_scores = scratch + at.of_scores;
      ScoresOf<R>(sight, at, block.head_dim, rows, scratch + at.keys, p);
      HideUnseen<R>(sight, p, at.seen);
      ScoresOf<R>(sight, at, block.head_dim, of_out, scratch + at.values, of_scores);
      for (int r = 0; r < R; ++r) {
        const int64_t row = block.begin + first + r;
        float* out = scratch + at.line;
        Unpack(block.element,
               At(block.out, block.element, row * block.out_stride + head * block.head_dim),
               block.head_dim, out);
        Vector products = {};
        for (int64_t i = 0; i < at.width; i += kLanes) {
          products += Load(out + i) * Load(of_out + r * at.width + i);
        }
        const float along = Sum(products), log_sum = block.log_sum[row * block.heads + head];
        float* line = p + r * at.seen;
        float* of_line = of_scores + r * at.seen;
        for (int64_t i = 0; i < sight.end(); i += kLanes) {
          const Vector share = Exp(Load(line + i) - log_sum);
          Store(line + i, share);
          Store(of_line + i, share * (Load(of_line + i) - along));
        }
      }
      OuterOf<R>(sight, at, p, of_out, scratch + at.of_v);
      OuterOf<R>(sight, at, of_scores, rows, scratch + at.of_k);
      // The queries of these rows are used up: their place takes their gradient.
      for (int64_t column = 0; column < at.width; column += kLanes) {
        Vector sums[R] = {};
        WeightedOf<R>(sight, at, of_scores, scratch + at.k, column, sums);
        for (int r = 0; r < R; ++r) Store(rows + r * at.width + column, sums[r]);
      }
    });
    TurnHead(block, at.width, -1, ScaleOf(block), scratch + at.q);
    PackHead(block, scratch + at.q, at.width, head, gradients.q);
  }
  TurnHead(block, at.width, -1, 1, scratch + at.of_k);
  PackHead(block, scratch + at.of_k, at.width, kv_head, gradients.k);
  PackHead(block, scratch + at.of_v, at.width, kv_head, gradients.v);
}

}  // namespace llava::ops::cpu::LLAVA_ISA
