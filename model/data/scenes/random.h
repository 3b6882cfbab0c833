#pragma once

// Random numbers of the scenes: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
// number generators", 2014) on a counter. Own distributions in integers and exact doubles, because
// those of <random> differ from library to library and a data set must not.

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace llava {

// A stream of numbers named by (seed, stream, purpose): equal names give equal streams, different
// ones independent streams. One thread.
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0, uint64_t purpose = 0)
      : state_(Mix(Mix(Mix(seed + kStep) ^ stream * kStep) + purpose)) {}

  uint64_t Bits() { return Mix(state_ += kStep); }

  // 0 .. n-1; n at least 1. Each value is right to 2^-32.
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(((Bits() >> 32) * n) >> 32); }
  // low .. high, both included.
  int Between(int low, int high) {
    return low + static_cast<int>(Below(static_cast<uint32_t>(high - low + 1)));
  }
  // [0, 1) with 53 bits.
  double Uniform() { return static_cast<double>(Bits() >> 11) * 0x1p-53; }
  bool Chance(double probability) { return Uniform() < probability; }

  // Bell-shaped around 0 with this standard deviation, rounded towards 0; never beyond 3.47 times
  // it.
  int Bell(int deviation) {
    const uint64_t bits = Bits();
    int64_t sum = -2 * 65535;  // four uniform 16-bit numbers: standard deviation 65536 / sqrt(3)
    for (int shift = 0; shift < 64; shift += 16)
      sum += static_cast<int64_t>(bits >> shift & 0xFFFF);
    return static_cast<int>(sum * deviation / 37837);
  }

  // Index drawn in proportion to the weights, which must not all be zero.
  size_t Weighted(std::span<const double> weights) {
    double total = 0;
    for (const double weight : weights) total += weight;
    double left = Uniform() * total;
    size_t last = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] <= 0) continue;
      last = i;
      if (left < weights[i]) return i;
      left -= weights[i];
    }
    return last;
  }

  // An element of a container that has size() and [].
  template <typename Container>
  decltype(auto) Pick(const Container& from) {
    return from[Below(static_cast<uint32_t>(from.size()))];
  }

  template <typename T>
  void Shuffle(std::vector<T>& values) {
    for (size_t n = values.size(); n > 1; --n) {
      std::swap(values[n - 1], values[Below(static_cast<uint32_t>(n))]);
    }
  }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15;

  static uint64_t Mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
  }

  uint64_t state_;
};

}  // namespace llava
