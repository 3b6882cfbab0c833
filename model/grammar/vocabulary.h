#pragma once

// The tokens of a tokenizer as byte strings, in a tree that is walked byte by byte.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llava::grammar {

// Const after construction, thread-safe.
class Vocabulary {
 public:
  // A place in the tree. The nodes stand in depth-first order: children follow their parent.
  struct Node {
    uint32_t end;     // behind the last node of its subtree
    uint32_t tokens;  // the first one that ends here or below, in their order
    uint8_t depth;    // bytes up to here, at least 1
    uint8_t byte;     // the last of them
  };

  // `tokens`: the bytes of each id; an empty one is never part of a text (special tokens).
  // `drops_space`, of each id: a space at its beginning is not part of a text that it begins
  // (SentencePiece's dummy prefix); empty: of none.
  explicit Vocabulary(std::vector<std::string> tokens, std::vector<bool> drops_space = {});

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  const std::string& bytes(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }
  bool drops_space(int32_t id) const {
    return !drops_space_.empty() && drops_space_[static_cast<size_t>(id)];
  }
  // Ids whose text begins with a space wherever they stand.
  std::span<const int32_t> keep_space() const { return keep_space_; }
  // A byte that texts need and that is no token; without one some texts could not be ended.
  std::optional<uint8_t> missing_byte() const { return missing_byte_; }
  // Brackets and braces that a token opens, at most.
  int most_opened() const { return most_opened_; }

  std::span<const Node> nodes() const { return nodes_; }
  std::span<const int32_t> tokens_at(size_t node) const {
    const size_t begin = nodes_[node].tokens;
    const size_t end = node + 1 < nodes_.size() ? nodes_[node + 1].tokens : order_.size();
    return std::span(order_).subspan(begin, end - begin);
  }
  // The bytes that lead to a node.
  std::string_view path(size_t node) const {
    const std::string_view first = tokens_[static_cast<size_t>(order_[nodes_[node].tokens])];
    return first.substr(0, nodes_[node].depth);
  }

 private:
  std::vector<std::string> tokens_;
  std::vector<bool> drops_space_;
  std::vector<int32_t> keep_space_;
  std::vector<int32_t> order_;  // ids by their bytes
  std::vector<Node> nodes_;
  std::optional<uint8_t> missing_byte_;
  int most_opened_ = 0;
};

}  // namespace llava::grammar
