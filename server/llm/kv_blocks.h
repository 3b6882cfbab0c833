#pragma once

// Which block of a worker's paged key/value cache holds what, and who may use it. Pure bookkeeping:
// no tensors, no clock, no threads.
//
// Finished blocks stay behind as a tree by content, one root for each salt: a sequence that begins
// as an earlier one did shares its blocks instead of computing them again. What nobody uses leaves
// when room is needed, the least recently used leaf first.

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "server/llm/row_key.h"

namespace llava {

// The blocks of one sequence.
struct KvTable {
  std::string salt = {};             // shares with its like only
  std::vector<RowKey> rows = {};     // what it reads: prompt, then what was generated
  std::vector<int32_t> blocks = {};  // in order of the rows
  int64_t computed = 0;              // rows whose keys and values the blocks hold
  int64_t cached = 0;                // of these, found by Begin instead of computed

  // For KvBlocks alone.
  int64_t shared = 0;  // leading blocks that are in the tree
};

class KvBlocks {
 public:
  static constexpr int64_t kTokens = 16;  // of one block

  struct Copy {
    int32_t from, to;
  };

  explicit KvBlocks(int64_t num_blocks);

  static int64_t BlocksFor(int64_t rows) { return (rows + kTokens - 1) / kTokens; }

  // Leading rows that the cache holds; at most all but the last one, which must be computed to go
  // on.
  int64_t FindPrefix(const std::string& salt, std::span<const RowKey> rows) const;

  // Blocks that must become available for all of `rows`: what others use already is shared.
  int64_t Missing(const std::string& salt, std::span<const RowKey> rows) const;
  // Blocks that End would make available.
  int64_t Regained(const KvTable& table) const;

  // Gives a table without blocks the longest prefix of its rows that is there. A block that fits in
  // part is copied: the caller copies its content before anything else is computed or begun.
  std::optional<Copy> Begin(KvTable& table);

  // Makes room for `rows` more rows behind the computed ones. False, and nothing changed: there is
  // not enough.
  bool Grow(KvTable& table, int64_t rows);

  // `rows` more are computed. Blocks that are full now can be shared.
  void Advance(KvTable& table, int64_t rows);

  // Takes the blocks back; salt and rows stay, so that Begin can follow. `keep`: what was computed
  // stays behind for others; false: it is not to be trusted, nor what was found. Nobody finds that
  // any more, and it goes with the last who uses it already.
  void End(KvTable& table, bool keep);

  // Blocks that Grow could give: free, or held by the cache alone.
  int64_t available() const { return static_cast<int64_t>(free_.size()) + idle_; }
  int64_t total() const { return static_cast<int64_t>(nodes_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t idle() const { return idle_; }  // held by the cache alone
  int64_t evicted() const { return evicted_; }

  // Throws std::logic_error unless every block is free, idle or used by exactly the tables given
  // and those that share it. For tests.
  void Check(std::span<const KvTable* const> tables) const;

 private:
  static constexpr int32_t kNone = -1;

  // Where the tree of a salt begins; `number` is below 0, blocks are not.
  struct Root {
    int32_t number;
    int64_t children = 0;
  };
  // A block in the tree.
  struct Node {
    bool in_tree = false;
    bool doubtful = false;   // an answer that used it gave no numbers: nobody else may
    int32_t parent = kNone;  // a block, or the number of a root
    std::string salt;        // of the root, where that is the parent
    std::array<RowKey, kTokens> rows;
    int64_t size = 0;  // rows in it; below kTokens only in leaves
    int64_t users = 0;
    int64_t children = 0;
    uint64_t used_at = 0;

    std::span<const RowKey> content() const { return std::span(rows).first(size); }
  };
  // Children that begin alike.
  struct Branch {
    int32_t parent;
    RowKey first;
    friend bool operator==(const Branch&, const Branch&) = default;
  };
  struct BranchHash {
    size_t operator()(const Branch& branch) const;
  };
  struct Prefix {
    std::vector<int32_t> blocks;  // whole ones
    int32_t partial = kNone;      // one more of which only the first `partial_rows` fit
    int64_t partial_rows = 0;
  };

  Prefix Walk(const std::string& salt, std::span<const RowKey> rows) const;
  std::span<const int32_t> Children(int32_t parent, const RowKey& first) const;
  int32_t Take();  // a free block, evicting if there is none; there must be one available
  void Use(int32_t block);
  void Release(int32_t block);
  void Insert(KvTable& table, int32_t block, int64_t size);
  void Remove(int32_t block);
  static bool IsWaste(const Node& node) {
    return node.doubtful && node.users == 0 && node.children == 0;
  }
  void NoteLeaf(int32_t block);  // after a change of users or children

  std::vector<Node> nodes_;  // by block
  std::vector<int32_t> free_;
  std::map<std::string, Root> roots_;
  int32_t last_root_ = kNone;
  std::unordered_map<Branch, std::vector<int32_t>, BranchHash> branches_;
  std::set<std::pair<uint64_t, int32_t>> leaves_;  // that could go, least recently used first
  int64_t idle_ = 0;
  int64_t evicted_ = 0;
  uint64_t time_ = 0;
};

}  // namespace llava
