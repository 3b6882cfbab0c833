#pragma once

// Keys and values of one sequence, all layers, where answers are made one at a time (evaluation).
// Grows by doubling. Serving has blocks instead: serving_decoder.h.

#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/config/model_config.h"

namespace llava {

// Owned and used by one thread.
class KvCache {
 public:
  // `dtype`: of the decoder. On the CPU values are kept in float32 whatever it is: attention there
  // computes in float32, and converting the whole cache in every step would cost more than it
  // saves.
  KvCache(const DecoderConfig& config, at::Device device, at::ScalarType dtype);

  // Tokens whose keys and values all layers hold.
  int64_t length() const { return length_; }
  // Stores k and v [T, Hkv, Dh] of `layer` behind the `length()` tokens that are there and returns
  // all keys and values of the layer, [length() + T, Hkv, Dh], as views into the cache.
  std::pair<at::Tensor, at::Tensor> Append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  // Called once after all layers were appended.
  void Advance(int64_t tokens) { length_ += tokens; }
  // Forgets all but the first `length` tokens. Throws std::invalid_argument if there are fewer.
  void Truncate(int64_t length);

 private:
  struct Layer {
    at::Tensor k, v;
  };  // [capacity, Hkv, Dh]
  std::vector<Layer> layers_;
  int64_t kv_heads_, head_dim_;
  at::Device device_;
  at::ScalarType dtype_;
  int64_t length_ = 0;
};

}  // namespace llava
