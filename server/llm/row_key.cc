#include "server/llm/row_key.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>

#include "model/digest/sha256.h"
#include "model/text/tokenizer.h"

namespace llava {

std::vector<RowKey> RowsOf(std::span<const int32_t> ids, std::span<const std::string> feature_keys,
                           std::span<const int64_t> picture_tokens) {
  std::vector<RowKey> rows;
  rows.reserve(ids.size() + static_cast<size_t>(std::accumulate(picture_tokens.begin(),
                                                                picture_tokens.end(), int64_t{0})));
  size_t image = 0;
  for (const int32_t id : ids) {
    if (id != kImageToken) {
      rows.push_back(RowKey::Token(id));
      continue;
    }
    const Sha256Digest digest = HashBytes(feature_keys[image]);
    RowKey key;
    static_assert(sizeof(digest) >= sizeof(key));
    std::memcpy(&key.high, digest.data(), sizeof(key.high));
    std::memcpy(&key.low, digest.data() + sizeof(key.high), sizeof(key.low));
    key.high |= uint64_t{1} << 63;  // no token of text
    key.low &= ~uint64_t{0xFFFF};
    for (int64_t row = 0; row < picture_tokens[image]; ++row) {
      rows.push_back({key.high, key.low | static_cast<uint64_t>(row)});
    }
    ++image;
  }
  return rows;
}

std::vector<int64_t> PictureStarts(std::span<const int32_t> ids,
                                   std::span<const int64_t> picture_tokens, int64_t computed) {
  std::vector<int64_t> starts;
  size_t image = 0;
  int64_t row = 0;
  for (const int32_t id : ids) {
    const int64_t end = row + (id == kImageToken ? picture_tokens[image++] : 1);
    if (id == kImageToken && end > computed) starts.push_back(std::max(row, computed));
    row = end;
  }
  return starts;
}

}  // namespace llava
