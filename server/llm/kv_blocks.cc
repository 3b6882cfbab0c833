#include "server/llm/kv_blocks.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

int64_t CommonRows(std::span<const RowKey> a, std::span<const RowKey> b) {
  const size_t most = std::min(a.size(), b.size());
  size_t i = 0;
  while (i < most && a[i] == b[i]) ++i;
  return static_cast<int64_t>(i);
}

}  // namespace

KvBlocks::KvBlocks(int64_t num_blocks) : nodes_(static_cast<size_t>(num_blocks)) {
  free_.reserve(nodes_.size());
  for (auto block = static_cast<int32_t>(num_blocks); block-- > 0;) free_.push_back(block);
}

size_t KvBlocks::BranchHash::operator()(const Branch& branch) const {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;
  uint64_t hash = static_cast<uint32_t>(branch.parent) * kOdd;
  hash = (hash ^ branch.first.high ^ hash >> 32) * kOdd;
  hash = (hash ^ branch.first.low ^ hash >> 32) * kOdd;
  return hash ^ hash >> 32;
}

std::span<const int32_t> KvBlocks::Children(int32_t parent, const RowKey& first) const {
  const auto found = branches_.find({parent, first});
  if (found == branches_.end()) return {};
  return found->second;
}

KvBlocks::Prefix KvBlocks::Walk(const std::string& salt, std::span<const RowKey> rows) const {
  Prefix prefix;
  const auto root = roots_.find(salt);
  if (rows.empty() || root == roots_.end()) return prefix;
  rows = rows.first(rows.size() - 1);
  int32_t parent = root->second.number;
  while (!rows.empty()) {
    int32_t best = kNone;
    int64_t most = 0;
    for (const int32_t child : Children(parent, rows[0])) {
      const int64_t common = CommonRows(nodes_[child].content(), rows);
      if (common > most && !nodes_[child].doubtful) {
        best = child;
        most = common;
      }
    }
    if (most < kTokens) {
      prefix.partial = best;
      prefix.partial_rows = most;
      break;
    }
    prefix.blocks.push_back(best);
    parent = best;
    rows = rows.subspan(kTokens);
  }
  return prefix;
}

int64_t KvBlocks::FindPrefix(const std::string& salt, std::span<const RowKey> rows) const {
  const Prefix prefix = Walk(salt, rows);
  return static_cast<int64_t>(prefix.blocks.size()) * kTokens + prefix.partial_rows;
}

int64_t KvBlocks::Missing(const std::string& salt, std::span<const RowKey> rows) const {
  const Prefix prefix = Walk(salt, rows);
  return BlocksFor(static_cast<int64_t>(rows.size())) -
         std::count_if(prefix.blocks.begin(), prefix.blocks.end(),
                       [&](int32_t block) { return nodes_[block].users > 0; });
}

int64_t KvBlocks::Regained(const KvTable& table) const {
  return std::count_if(table.blocks.begin(), table.blocks.end(),
                       [&](int32_t block) { return nodes_[block].users <= 1; });
}

std::optional<KvBlocks::Copy> KvBlocks::Begin(KvTable& table) {
  const Prefix prefix = Walk(table.salt, table.rows);
  for (const int32_t block : prefix.blocks) Use(block);
  table.blocks = prefix.blocks;
  table.shared = static_cast<int64_t>(prefix.blocks.size());
  table.computed = table.shared * kTokens;
  std::optional<Copy> copy;
  if (prefix.partial != kNone) {
    Use(prefix.partial);  // so that it is not what makes room for its copy
    if (available() > 0) {
      copy = {prefix.partial, Take()};
      table.blocks.push_back(copy->to);
      table.computed += prefix.partial_rows;
    }
    Release(prefix.partial);
  }
  table.cached = table.computed;
  return copy;
}

bool KvBlocks::Grow(KvTable& table, int64_t rows) {
  const int64_t missing =
      BlocksFor(table.computed + rows) - static_cast<int64_t>(table.blocks.size());
  if (missing > available()) return false;
  for (int64_t i = 0; i < missing; ++i) table.blocks.push_back(Take());
  return true;
}

void KvBlocks::Advance(KvTable& table, int64_t rows) {
  table.computed += rows;
  while ((table.shared + 1) * kTokens <= table.computed) {
    Insert(table, table.blocks[table.shared], kTokens);
  }
}

void KvBlocks::End(KvTable& table, bool keep) {
  const int64_t rest = table.computed - table.shared * kTokens;
  if (keep && rest > 0) Insert(table, table.blocks[table.shared], rest);
  // What was computed from doubtful rows is no better.
  bool doubtful = !keep;
  for (int64_t i = 0; i < table.shared; ++i) {
    Node& node = nodes_[table.blocks[i]];
    doubtful = node.doubtful = doubtful || node.doubtful;
  }
  // The leaves first, so that a parent is one when its turn comes.
  for (auto i = static_cast<int64_t>(table.blocks.size()); i-- > 0;) {
    const int32_t block = table.blocks[i];
    if (i >= table.shared) {
      free_.push_back(block);
      continue;
    }
    Release(block);
    if (IsWaste(nodes_[block])) Remove(block);
  }
  ++time_;
  table.blocks.clear();
  table.computed = table.cached = table.shared = 0;
}

void KvBlocks::Insert(KvTable& table, int32_t block, int64_t size) {
  Node node;
  node.in_tree = true;
  node.size = size;
  std::copy_n(table.rows.begin() + table.shared * kTokens, size, node.rows.begin());
  if (table.shared > 0) {
    node.parent = table.blocks[table.shared - 1];
  } else {
    node.salt = table.salt;
    const auto [root, added] = roots_.try_emplace(table.salt, Root{last_root_});
    if (added) --last_root_;
    node.parent = root->second.number;
  }
  std::vector<int32_t> replaced;
  for (const int32_t child : Children(node.parent, node.rows[0])) {
    const Node& other = nodes_[child];
    if (other.doubtful) continue;
    const int64_t common = CommonRows(other.content(), node.content());
    if (common == size) {  // it is there already
      free_.push_back(block);
      table.blocks[table.shared++] = child;
      return Use(child);
    }
    // One that stopped half-way of this has nothing more to give.
    if (common == other.size && other.users == 0) replaced.push_back(child);
  }
  branches_[{node.parent, node.rows[0]}].push_back(block);
  if (table.shared > 0) {
    ++nodes_[node.parent].children;
    NoteLeaf(node.parent);
  } else {
    ++roots_.at(node.salt).children;
  }
  nodes_[block] = std::move(node);
  ++idle_;
  Use(block);
  ++table.shared;
  for (const int32_t child : replaced) Remove(child);
}

void KvBlocks::Use(int32_t block) {
  if (nodes_[block].users++ == 0) --idle_;
  NoteLeaf(block);
}

void KvBlocks::Release(int32_t block) {
  Node& node = nodes_[block];
  if (--node.users == 0) ++idle_;
  leaves_.erase({node.used_at, block});
  node.used_at = time_;
  NoteLeaf(block);
}

void KvBlocks::NoteLeaf(int32_t block) {
  const Node& node = nodes_[block];
  const std::pair<uint64_t, int32_t> key = {node.used_at, block};
  if (node.in_tree && node.users == 0 && node.children == 0) {
    leaves_.insert(key);
  } else {
    leaves_.erase(key);
  }
}

void KvBlocks::Remove(int32_t block) {
  Node& node = nodes_[block];
  leaves_.erase({node.used_at, block});
  const auto branch = branches_.find({node.parent, node.rows[0]});
  std::erase(branch->second, block);
  if (branch->second.empty()) branches_.erase(branch);
  if (node.parent >= 0) {
    --nodes_[node.parent].children;
    NoteLeaf(node.parent);
  } else if (const auto root = roots_.find(node.salt); --root->second.children == 0) {
    roots_.erase(root);
  }
  const int32_t parent = node.parent;
  node = Node();
  --idle_;
  free_.push_back(block);
  if (parent >= 0 && IsWaste(nodes_[parent])) Remove(parent);
}

int32_t KvBlocks::Take() {
  if (free_.empty()) {
    Remove(leaves_.begin()->second);
    ++evicted_;
  }
  const int32_t block = free_.back();
  free_.pop_back();
  return block;
}

void KvBlocks::Check(std::span<const KvTable* const> tables) const {
  const auto fail = [](const auto&... parts) { throw std::logic_error(absl::StrCat(parts...)); };
  std::vector<int64_t> uses(nodes_.size(), 0), owners(nodes_.size(), 0);
  for (const KvTable* table : tables) {
    for (size_t i = 0; i < table->blocks.size(); ++i) {
      const bool shared = static_cast<int64_t>(i) < table->shared;
      ++(shared ? uses : owners)[table->blocks[i]];
    }
    const auto held = static_cast<int64_t>(table->blocks.size());
    if (table->computed > held * kTokens) fail("a table holds more rows than its blocks");
    if (table->computed > static_cast<int64_t>(table->rows.size())) fail("rows without a name");
  }
  for (const int32_t block : free_) ++owners[block];
  int64_t idle = 0;
  std::map<int32_t, int64_t> children;  // of blocks and roots
  for (size_t block = 0; block < nodes_.size(); ++block) {
    const Node& node = nodes_[block];
    if (owners[block] + (node.in_tree ? 1 : 0) != 1) {
      fail("block ", block, " has ", owners[block], " owners, in the tree: ", node.in_tree);
    }
    if (node.users != uses[block]) {
      fail("block ", block, " counts ", node.users, " users of ", uses[block]);
    }
    if (!node.in_tree) continue;
    if (node.users == 0) ++idle;
    if (IsWaste(node)) fail("block ", block, " is there for nobody");
    const auto number = static_cast<int32_t>(block);
    const std::span<const int32_t> siblings = Children(node.parent, node.rows[0]);
    if (std::count(siblings.begin(), siblings.end(), number) != 1) {
      fail("block ", block, " is not among its parent's children");
    }
    ++children[node.parent];
    if (node.parent >= 0 && nodes_[node.parent].users < node.users) {
      fail("block ", block, " is used more than its parent");
    }
    if (node.children > 0 && node.size != kTokens) fail("a part has children");
    const bool leaf = node.users == 0 && node.children == 0;
    if (leaves_.contains({node.used_at, number}) != leaf) fail("leaf ", block, " is lost");
  }
  if (idle != idle_) fail(idle_, " idle blocks counted of ", idle);
  for (size_t block = 0; block < nodes_.size(); ++block) {
    const int64_t counted = nodes_[block].children;
    if (counted != children[static_cast<int32_t>(block)])
      fail("children of ", block, ": ", counted);
  }
  for (const auto& [salt, root] : roots_) {
    if (root.children == 0 || root.children != children[root.number]) fail("a root is lost");
  }
}

}  // namespace llava
