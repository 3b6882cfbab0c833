#pragma once

// What one row of a prompt is, exactly enough to know an equal one when it comes again.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace llava {

// A token of text, or a row of a picture.
struct RowKey {
  uint64_t high = 0, low = 0;

  friend bool operator==(const RowKey&, const RowKey&) = default;

  static RowKey Token(int32_t id) { return {0, static_cast<uint32_t>(id)}; }
};

// The rows of a prompt: every kImageToken of `ids` becomes as many rows as its entry of
// `picture_tokens` says (at most kMaxPictureTokens), named after its feature key (the bytes of
// FeatureKeyToBytes; 111 bits of their SHA-256 and the row).
std::vector<RowKey> RowsOf(std::span<const int32_t> ids, std::span<const std::string> feature_keys,
                           std::span<const int64_t> picture_tokens);

// The rows at which a runner projects the pictures of a prompt, ascending, if `computed` rows need
// not be computed: the first of each that is left.
std::vector<int64_t> PictureStarts(std::span<const int32_t> ids,
                                   std::span<const int64_t> picture_tokens, int64_t computed);

}  // namespace llava
