#pragma once

// Byte strings -> ids, walked byte by byte: finds all keys that begin at a place of a text.

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace llava {

// Const after construction, thread-safe.
class Trie {
 public:
  static constexpr int32_t kNone = -1;

  using Entries = std::vector<std::pair<std::string_view, int32_t>>;

  Trie() = default;
  // Keys must differ and not be empty; values must not be negative.
  explicit Trie(Entries entries);

  bool empty() const { return nodes_.size() <= 1; }

  // Calls visit(length, value) for every key that `text` begins with, shortest first.
  template <typename Visit>
  void VisitPrefixes(std::string_view text, Visit visit) const {
    if (empty() || text.empty()) return;
    int32_t node = root_[static_cast<uint8_t>(text[0])];
    for (size_t i = 1; node != kNone; ++i) {
      if (nodes_[node].value != kNone) visit(i, nodes_[node].value);
      if (i == text.size()) break;
      node = Child(node, static_cast<uint8_t>(text[i]));
    }
  }

  struct Match {
    size_t length = 0;  // 0: no key fits
    int32_t value = kNone;
  };
  // The longest key that `text` begins with.
  Match Longest(std::string_view text) const {
    Match best;
    VisitPrefixes(text, [&best](size_t length, int32_t value) { best = {length, value}; });
    return best;
  }

 private:
  struct Node {
    int32_t first_child = 0;  // children stand side by side, in the order of their bytes
    int16_t num_children = 0;
    uint8_t byte = 0;  // that leads here
    int32_t value = kNone;
  };

  int32_t Child(int32_t node, uint8_t byte) const;

  std::vector<Node> nodes_;
  std::array<int32_t, 256> root_{};  // children of the root by byte
};

}  // namespace llava
