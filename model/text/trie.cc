#include "model/text/trie.h"

#include <algorithm>
#include <cstddef>

namespace llava {

Trie::Trie(Entries entries) {
  std::sort(entries.begin(), entries.end());
  root_.fill(kNone);
  nodes_.emplace_back();
  struct Task {
    int32_t node;
    size_t begin, end, depth;  // entries with the same first `depth` bytes
  };
  std::vector<Task> tasks = {{0, 0, entries.size(), 0}};
  for (size_t t = 0; t < tasks.size(); ++t) {  // breadth first, so that siblings are neighbours
    auto [node, begin, end, depth] = tasks[t];
    if (begin < end && entries[begin].first.size() == depth) {
      nodes_[node].value = entries[begin++].second;
    }
    nodes_[node].first_child = static_cast<int32_t>(nodes_.size());
    while (begin < end) {
      const uint8_t byte = static_cast<uint8_t>(entries[begin].first[depth]);
      size_t next = begin;
      while (next < end && static_cast<uint8_t>(entries[next].first[depth]) == byte) ++next;
      const int32_t child = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({0, 0, byte, kNone});
      ++nodes_[node].num_children;
      if (node == 0) root_[byte] = child;
      tasks.push_back({child, begin, next, depth + 1});
      begin = next;
    }
  }
}

int32_t Trie::Child(int32_t node, uint8_t byte) const {
  const Node* first = nodes_.data() + nodes_[node].first_child;
  const Node* last = first + nodes_[node].num_children;
  const Node* found =
      std::lower_bound(first, last, byte, [](const Node& n, uint8_t b) { return n.byte < b; });
  return found != last && found->byte == byte ? static_cast<int32_t>(found - nodes_.data()) : kNone;
}

}  // namespace llava
