// Attention in which every query sees all keys, by vectors: keys as columns, values as rows, both
// widened to floats; some queries at a time.
#include "model/ops/cpu/full_tiles.h"
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/simd.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kQueries = 6;  // at a time, so that their sums stay in registers
#elif defined(__AVX2__)
constexpr int kQueries = 2;
#else
constexpr int kQueries = 1;
#endif
static_assert(kQueryBlock % kQueries == 0);
constexpr int64_t kStep = 2 * kLanes;

int64_t PaddedToStep(int64_t size) { return (size + kStep - 1) / kStep * kStep; }

// In floats.
struct Layout {
  explicit Layout(const FullAttention& task)
      : tokens(PaddedToStep(task.tokens)),
        width(PaddedToStep(task.head_dim)),
        values(task.head_dim * tokens),
        scores(values + task.tokens * width),
        q(scores + kQueries * tokens),
        out(q + kQueries * width),
        size(out + kQueries * width) {}
  int64_t tokens, width;  // padded
  int64_t values, scores, q, out, size;
};

[[gnu::always_inline]] inline float Widen(float value) { return value; }
[[gnu::always_inline]] inline float Widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

template <typename T>
const T* Row(const ConstRows& rows, int64_t index) {
  return static_cast<const T*>(rows.data) + index * rows.stride;
}

template <typename T>
void WidenAll(const FullAttention& task, const Layout& at, float* scratch) {
  for (int64_t t = 0; t < at.tokens; ++t) {
    for (int64_t d = 0; d < task.head_dim; ++d) {
      scratch[d * at.tokens + t] = t < task.tokens ? Widen(Row<T>(task.k, t)[d]) : 0.0f;
    }
  }
  for (int64_t t = 0; t < task.tokens; ++t) {
    float* const to = scratch + at.values + t * at.width;
    for (int64_t d = 0; d < at.width; ++d) {
      to[d] = d < task.head_dim ? Widen(Row<T>(task.v, t)[d]) : 0.0f;
    }
  }
}

// out [R][columns] = a [R][depth] times b [depth][columns], columns a multiple of kStep.
template <int R>
void Product(const float* a, int64_t a_line, const float* b, int64_t columns, int64_t depth,
             float* out) {
  for (int64_t j = 0; j < columns; j += kStep) {
    Vector sums[R][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const Vector b0 = Load(b + k * columns + j), b1 = Load(b + k * columns + j + kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vector x = Vector{} + a[r * a_line + k];
        sums[r][0] = Fused(x, b0, sums[r][0]);
        sums[r][1] = Fused(x, b1, sums[r][1]);
      }
    }
    for (int r = 0; r < R; ++r) {
      Store(out + r * columns + j, sums[r][0]);
      Store(out + r * columns + j + kLanes, sums[r][1]);
    }
  }
}

// Scores become weights; returns their sum.
float Weigh(float* scores, int64_t tokens) {
  const Vector never = Vector{} - __builtin_inff();
  Vector most = never;
  for (int64_t i = 0; i < tokens; i += kLanes) {
    Vector v = Load(scores + i);
    if (i + kLanes > tokens) v = kLane < static_cast<int32_t>(tokens - i) ? v : never;
    Store(scores + i, v);
    most = Max(most, v);
  }
  const float peak = Largest(most);
  Vector total = {};
  for (int64_t i = 0; i < tokens; i += kLanes) {
    const Vector p = Exp(Load(scores + i) - peak);
    Store(scores + i, p);
    total += p;
  }
  return Sum(total);
}

template <int R, typename T>
void Attend(const FullAttention& task, const Layout& at, int64_t first, float* scratch) {
  const int64_t dim = task.head_dim;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  float* const q = scratch + at.q;
  float* const scores = scratch + at.scores;
  float* const out = scratch + at.out;
  for (int r = 0; r < R; ++r) {
    const T* from = Row<T>(task.q, first + r);
    for (int64_t d = 0; d < dim; ++d) q[r * at.width + d] = Widen(from[d]) * scale;
  }
  Product<R>(q, at.width, scratch, at.tokens, dim, scores);
  float totals[R];
  for (int r = 0; r < R; ++r) totals[r] = Weigh(scores + r * at.tokens, task.tokens);
  Product<R>(scores, at.tokens, scratch + at.values, at.width, task.tokens, out);
  for (int r = 0; r < R; ++r) {
    T* const to = static_cast<T*>(task.out.data) + (first + r) * task.out.stride;
    for (int64_t d = 0; d < dim; d += kLanes) {
      const Vector v = Load(out + r * at.width + d) / totals[r];
      if (d + kLanes <= dim) {
        StoreRounded(to + d, v);
      } else {
        StorePart(to + d, v, dim - d);
      }
    }
  }
}

template <typename T>
void AttendAll(const FullAttention& task, float* scratch) {
  const Layout at(task);
  WidenAll<T>(task, at, scratch);
  int64_t i = task.first;
  const int64_t end = task.first + task.count;
  for (; i + kQueries <= end; i += kQueries) Attend<kQueries, T>(task, at, i, scratch);
  for (; i < end; ++i) Attend<1, T>(task, at, i, scratch);
}

}  // namespace

int64_t FullAttentionScratch(const FullAttention& task) {
  const int64_t of_tiles = FullTilesScratch(task);
  return of_tiles > 0 ? of_tiles : Layout(task).size;
}

void FullAttentionHead(const FullAttention& task, float* scratch) {
  if (FullAttentionByTiles(task, scratch)) return;
  if (task.element == Element::kFloat) {
    AttendAll<float>(task, scratch);
  } else {
    AttendAll<BFloat16>(task, scratch);
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
