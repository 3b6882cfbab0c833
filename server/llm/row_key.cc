#include "server/llm/row_key.h"

#include <cstddef>
#include <cstring>

#include "model/digest/sha256.h"
#include "model/text/tokenizer.h"

namespace llava {

std::vector<RowKey> RowsOf(std::span<const int32_t> ids, std::span<const std::string> feature_keys,
                           int64_t image_tokens) {
  std::vector<RowKey> rows;
  rows.reserve(ids.size() + feature_keys.size() * static_cast<size_t>(image_tokens));
  size_t image = 0;
  for (const int32_t id : ids) {
    if (id != kImageToken) {
      rows.push_back(RowKey::Token(id));
      continue;
    }
    const Sha256Digest digest = HashBytes(feature_keys[image++]);
    RowKey key;
    static_assert(sizeof(digest) >= sizeof(key));
    std::memcpy(&key.high, digest.data(), sizeof(key.high));
    std::memcpy(&key.low, digest.data() + sizeof(key.high), sizeof(key.low));
    key.high |= uint64_t{1} << 63;  // no token of text
    key.low &= ~uint64_t{0xFFFF};
    for (int64_t row = 0; row < image_tokens; ++row) {
      rows.push_back({key.high, key.low | static_cast<uint64_t>(row)});
    }
  }
  return rows;
}

}  // namespace llava
