#include "model/checkpoint/random_tensors.h"

#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

namespace llava {
namespace {

constexpr int64_t kQuantiles = 1 << 16;
constexpr float kDeviation = 0.02f;
constexpr float kOutlierFactor = 20;

// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
// generators", 2014): every bit of the result depends on every bit of x.
uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

uint64_t Hash(uint64_t key, uint64_t counter) { return Mix(key + counter * 0x9E3779B97F4A7C15); }

// x where a normal variable is below x with probability (i + 0.5) / kQuantiles, for all i; the
// outermost ones are 4.3 deviations away.
std::vector<float> NormalQuantiles() {
  std::vector<float> quantiles(kQuantiles);
  double x = -5;
  for (int64_t i = 0; i < kQuantiles; ++i) {
    const double share = (static_cast<double>(i) + 0.5) / kQuantiles;
    for (int step = 0; step < 40; ++step) {  // Newton, from the one before
      const double error = 0.5 * std::erfc(-x / std::sqrt(2)) - share;
      const double slope = std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
      const double change = error / slope;
      x -= change;
      if (std::abs(change) < 1e-9) break;
    }
    quantiles[static_cast<size_t>(i)] = static_cast<float>(x);
  }
  return quantiles;
}

class RandomFile : public TensorFile {
 public:
  RandomFile(const TensorShapes& shapes, const RandomTensorOptions& options)
      : options_(options), scaled_(NormalQuantiles()) {
    for (float& value : scaled_) value *= kDeviation;
    for (const auto& [name, shape] : shapes) infos_[name] = {options.dtype, shape};
  }

  const std::map<std::string, TensorInfo>& tensors() const override { return infos_; }

  at::Tensor Get(const std::string& name) const override {
    const auto found = infos_.find(name);
    if (found == infos_.end()) throw std::out_of_range("no random tensor \"" + name + "\"");
    const std::vector<int64_t>& shape = found->second.shape;
    const auto type = at::TensorOptions().dtype(options_.dtype);
    if (name.ends_with("norm.weight")) return at::full(shape, 1.0, type);
    if (name.ends_with(".bias")) return at::full(shape, 0.0, type);
    at::Tensor tensor = at::empty(shape, type);
    uint64_t key = Mix(options_.seed + 0x9E3779B97F4A7C15);
    for (const char c : name) key = Mix(key ^ static_cast<uint8_t>(c));
    if (options_.dtype == at::kFloat) {
      Fill(key, tensor.data_ptr<float>(), tensor.numel());
    } else {
      Fill(key, tensor.data_ptr<at::BFloat16>(), tensor.numel());
    }
    return tensor;
  }

 private:
  // Four numbers of each hash, 16 bits for each.
  template <typename Element>
  void Fill(uint64_t key, Element* to, int64_t size) const {
    const bool outliers = options_.outliers > 0;
    const double limit = std::ldexp(options_.outliers, 64);
    at::parallel_for(0, (size + 3) / 4, 1 << 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint64_t word = Hash(key, static_cast<uint64_t>(i));
        for (int64_t j = 4 * i; j < 4 * i + 4 && j < size; ++j) {
          float value = scaled_[word >> 16 * (j % 4) & (kQuantiles - 1)];
          if (outliers && static_cast<double>(Hash(~key, static_cast<uint64_t>(j))) < limit) {
            value *= kOutlierFactor;
          }
          to[j] = static_cast<Element>(value);
        }
      }
    });
  }

  RandomTensorOptions options_;
  std::vector<float> scaled_;  // quantiles times the deviation
  std::map<std::string, TensorInfo> infos_;
};

}  // namespace

TensorSource RandomTensors(const TensorShapes& shapes, const RandomTensorOptions& options) {
  if (options.dtype != at::kFloat && options.dtype != at::kBFloat16) {
    throw std::invalid_argument("random tensors are float32 or bfloat16");
  }
  TensorSource source;
  source.Put(std::make_shared<const RandomFile>(shapes, options));
  return source;
}

}  // namespace llava
