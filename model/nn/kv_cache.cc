#include "model/nn/kv_cache.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include <ATen/ops/empty.h>

namespace llava {
namespace {

constexpr int64_t kFirstCapacity = 64;  // tokens

at::ScalarType StoredType(at::Device device, at::ScalarType dtype) {
  return device.is_cpu() ? at::kFloat : dtype;
}

}  // namespace

KvCache::KvCache(const DecoderConfig& config, at::Device device, at::ScalarType dtype)
    : layers_(config.num_layers),
      kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      device_(device),
      dtype_(StoredType(device, dtype)) {}

std::pair<at::Tensor, at::Tensor> KvCache::Append(int64_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  Layer& store = layers_.at(layer);
  const int64_t tokens = k.size(0), needed = length_ + tokens;
  const int64_t capacity = store.k.defined() ? store.k.size(0) : 0;
  if (needed > capacity) {
    const int64_t grown = std::max({needed, 2 * capacity, kFirstCapacity});
    const auto grow = [&](at::Tensor& old) {
      at::Tensor wider =
          at::empty({grown, kv_heads_, head_dim_}, at::TensorOptions(device_).dtype(dtype_));
      if (length_ > 0) wider.narrow(0, 0, length_).copy_(old.narrow(0, 0, length_));
      old = std::move(wider);
    };
    grow(store.k);
    grow(store.v);
  }
  store.k.narrow(0, length_, tokens).copy_(k);
  store.v.narrow(0, length_, tokens).copy_(v);
  return {store.k.narrow(0, 0, needed), store.v.narrow(0, 0, needed)};
}

void KvCache::Truncate(int64_t length) {
  if (length < 0 || length > length_) {
    throw std::invalid_argument("KvCache: cannot truncate " + std::to_string(length_) +
                                " tokens to " + std::to_string(length));
  }
  length_ = length;
}

}  // namespace llava
