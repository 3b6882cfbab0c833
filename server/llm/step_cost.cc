#include "server/llm/step_cost.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace llava {
namespace {

// A step counts so much less with every later one of its kind.
constexpr double kFading = 0.95;
// How much kinds count. Steps of prompts alone are larger than those that are to be foretold, and a
// row of them is cheaper; they say what is needed until there were some of the others.
constexpr std::array<double, 3> kWeights = {1, 1, 0.1};
// Units of the terms, so that they are of one size.
constexpr double kRows = 64, kKeys = 64 * 512;
// Added to the diagonal: where steps were all alike, it decides how the terms share their time.
constexpr double kRidge = 1e-6;
// An observation is cut to so many times what was expected, once that many were made.
constexpr double kMostOff = 3;
constexpr int64_t kFirstSteps = 8;

using Vector = std::array<double, 3>;
using Matrix = std::array<Vector, 3>;

// Solves a x = b for the terms that are not `out`, by elimination; a is symmetric and, thanks to
// its diagonal, positive.
Vector Solve(Matrix a, Vector b, const std::array<bool, 3>& out) {
  for (size_t i = 0; i < 3; ++i) {
    if (!out[i]) continue;
    for (size_t j = 0; j < 3; ++j) a[i][j] = a[j][i] = i == j ? 1 : 0;
    b[i] = 0;
  }
  for (size_t i = 0; i < 3; ++i) {
    for (size_t row = i + 1; row < 3; ++row) {
      const double factor = a[row][i] / a[i][i];
      for (size_t j = i; j < 3; ++j) a[row][j] -= factor * a[i][j];
      b[row] -= factor * b[i];
    }
  }
  Vector x = {};
  for (size_t i = 3; i-- > 0;) {
    x[i] = b[i];
    for (size_t j = i + 1; j < 3; ++j) x[i] -= a[i][j] * x[j];
    x[i] /= a[i][i];
  }
  return x;
}

}  // namespace

void StepCost::Observe(const StepWork& work, double seconds) {
  if (work.rows() == 0 || work.pictures > 0 || !(seconds > 0)) return;
  if (observed_ >= kFirstSteps) {
    const double expected = Seconds(work);
    if (expected > 0) seconds = std::clamp(seconds, expected / kMostOff, expected * kMostOff);
  }
  ++observed_;
  most_rows_ = std::max(most_rows_, work.rows());
  Sums& sums = kinds_[work.prompt_rows == 0 ? 0 : work.decode_rows > 0 ? 1 : 2];
  const double rows = static_cast<double>(work.rows()) / kRows;
  const double keys = static_cast<double>(work.keys) / kKeys;
  const double size = 1 + rows + keys;  // about in proportion to what it takes
  const Vector terms = {1 / size, rows / size, keys / size};
  for (size_t i = 0; i < terms.size(); ++i) {
    sums.seconds[i] = kFading * sums.seconds[i] + terms[i] * seconds / size;
    for (size_t j = 0; j < terms.size(); ++j) {
      sums.products[i][j] = kFading * sums.products[i][j] + terms[i] * terms[j];
    }
  }
  Fit();
}

void StepCost::Fit() {
  Matrix a = {};
  Vector b = {};
  for (size_t kind = 0; kind < kinds_.size(); ++kind) {
    for (size_t i = 0; i < b.size(); ++i) {
      b[i] += kWeights[kind] * kinds_[kind].seconds[i];
      for (size_t j = 0; j < b.size(); ++j) a[i][j] += kWeights[kind] * kinds_[kind].products[i][j];
    }
  }
  const double ridge = kRidge * (a[0][0] + a[1][1] + a[2][2]);
  for (size_t i = 0; i < b.size(); ++i) a[i][i] += ridge;
  // What comes out below zero is left out, the worst first.
  std::array<bool, 3> out = {};
  Vector x = Solve(a, b, out);
  while (true) {
    const auto least = static_cast<size_t>(std::min_element(x.begin(), x.end()) - x.begin());
    if (x[least] >= 0) break;
    out[least] = true;
    x = Solve(a, b, out);
  }
  fixed_ = x[0];
  row_ = x[1] / kRows;
  key_ = x[2] / kKeys;
}

double StepCost::Seconds(const StepWork& work) const {
  return fixed_ + row_ * static_cast<double>(work.rows()) + key_ * static_cast<double>(work.keys);
}

}  // namespace llava
