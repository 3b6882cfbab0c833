// Normalisation and activation, row by row.
#include "model/ops/cpu/isa_kernels.h"
#include "model/ops/cpu/simd.h"

namespace llava::ops::cpu::LLAVA_ISA {
namespace {

// Calls `whole(i)` for i = 0, 16, .. and `part(i, count)` for what is left.
template <typename Whole, typename Part>
[[gnu::always_inline]] inline void ForVectors(int64_t size, Whole whole, Part part) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) whole(i);
  if (i < size) part(i, size - i);
}

template <typename T>
float RmsNormRow(const float* x, const float* weight, float eps, int64_t width, T* out) {
  Vector squares = {};
  ForVectors(
      width,
      [&](int64_t i) {
        const Vector v = Load(x + i);
        squares += v * v;
      },
      [&](int64_t i, int64_t n) {
        const Vector v = LoadPart(x + i, n);
        squares += v * v;
      });
  const float scale = 1.0f / __builtin_sqrtf(Sum(squares) / static_cast<float>(width) + eps);
  ForVectors(
      width, [&](int64_t i) { Store(out + i, Load(x + i) * scale * Load(weight + i)); },
      [&](int64_t i, int64_t n) {
        StorePart(out + i, LoadPart(x + i, n) * scale * LoadPart(weight + i, n), n);
      });
  return scale;
}

// With y = x s w, s = (mean x^2 + eps)^-1/2: dx = s (w dy) - x s^3 mean(w dy x), dw += dy x s.
template <typename T>
void RmsNormBackwardRow(const float* x, const float* weight, float scale, int64_t width,
                        const T* gradient, float* of_x, float* of_weight) {
  Vector products = {};
  ForVectors(
      width,
      [&](int64_t i) {
        const Vector v = Load(x + i), dy = Load(gradient + i);
        products += dy * Load(weight + i) * v;
        Store(of_weight + i, Load(of_weight + i) + dy * v * scale);
      },
      [&](int64_t i, int64_t n) {
        const Vector v = LoadPart(x + i, n), dy = LoadPart(gradient + i, n);
        products += dy * LoadPart(weight + i, n) * v;
        StorePart(of_weight + i, LoadPart(of_weight + i, n) + dy * v * scale, n);
      });
  const float along = Sum(products) / static_cast<float>(width) * scale * scale * scale;
  ForVectors(
      width,
      [&](int64_t i) {
        Store(of_x + i, Load(gradient + i) * Load(weight + i) * scale - Load(x + i) * along);
      },
      [&](int64_t i, int64_t n) {
        StorePart(of_x + i,
                  LoadPart(gradient + i, n) * LoadPart(weight + i, n) * scale -
                      LoadPart(x + i, n) * along,
                  n);
      });
}

[[gnu::always_inline]] inline Vector Sigmoid(Vector x) { return 1.0f / (1.0f + Exp(-x)); }

template <typename T>
void SwiGluOf(const T* gate, const T* up, int64_t size, T* out) {
  const auto value = [](Vector g, Vector u) { return g * Sigmoid(g) * u; };
  ForVectors(
      size, [&](int64_t i) { Store(out + i, value(Load(gate + i), Load(up + i))); },
      [&](int64_t i, int64_t n) {
        StorePart(out + i, value(LoadPart(gate + i, n), LoadPart(up + i, n)), n);
      });
}

template <typename T>
void SwiGluBackwardOf(const T* gate, const T* up, const T* gradient, int64_t size, T* of_gate,
                      T* of_up) {
  const auto gradients = [](Vector g, Vector u, Vector dy, Vector& dg, Vector& du) {
    const Vector s = Sigmoid(g);
    dg = dy * u * s * (1.0f + g * (1.0f - s));
    du = dy * g * s;
  };
  Vector dg, du;
  ForVectors(
      size,
      [&](int64_t i) {
        gradients(Load(gate + i), Load(up + i), Load(gradient + i), dg, du);
        Store(of_gate + i, dg);
        Store(of_up + i, du);
      },
      [&](int64_t i, int64_t n) {
        gradients(LoadPart(gate + i, n), LoadPart(up + i, n), LoadPart(gradient + i, n), dg, du);
        StorePart(of_gate + i, dg, n);
        StorePart(of_up + i, du, n);
      });
}

}  // namespace

float RmsNorm(const float* x, const float* weight, float eps, int64_t width, Element element,
              void* out) {
  return element == Element::kFloat
             ? RmsNormRow(x, weight, eps, width, static_cast<float*>(out))
             : RmsNormRow(x, weight, eps, width, static_cast<BFloat16*>(out));
}

void RmsNormBackward(const float* x, const float* weight, float scale, int64_t width,
                     Element element, const void* gradient, float* of_x, float* of_weight) {
  if (element == Element::kFloat) {
    RmsNormBackwardRow(x, weight, scale, width, static_cast<const float*>(gradient), of_x,
                       of_weight);
  } else {
    RmsNormBackwardRow(x, weight, scale, width, static_cast<const BFloat16*>(gradient), of_x,
                       of_weight);
  }
}

void SwiGlu(Element element, const void* gate, const void* up, int64_t size, void* out) {
  const auto as = [&]<typename T>(T*) {
    SwiGluOf(static_cast<const T*>(gate), static_cast<const T*>(up), size, static_cast<T*>(out));
  };
  if (element == Element::kFloat) {
    as(static_cast<float*>(nullptr));
  } else {
    as(static_cast<BFloat16*>(nullptr));
  }
}

void SwiGluBackward(Element element, const void* gate, const void* up, const void* gradient,
                    int64_t size, void* of_gate, void* of_up) {
  const auto as = [&]<typename T>(T*) {
    SwiGluBackwardOf(static_cast<const T*>(gate), static_cast<const T*>(up),
                     static_cast<const T*>(gradient), size, static_cast<T*>(of_gate),
                     static_cast<T*>(of_up));
  };
  if (element == Element::kFloat) {
    as(static_cast<float*>(nullptr));
  } else {
    as(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace llava::ops::cpu::LLAVA_ISA
