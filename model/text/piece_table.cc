#include "model/text/piece_table.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace llava {
namespace {

uint64_t Hash(std::string_view text) {
  constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;
  uint64_t hash = text.size() * kFactor;
  while (!text.empty()) {
    uint64_t word = 0;
    const size_t taken = std::min(text.size(), sizeof word);
    std::memcpy(&word, text.data(), taken);
    hash = (hash ^ word) * kFactor;
    hash ^= hash >> 32;
    text.remove_prefix(taken);
  }
  return hash * kFactor;
}

uint32_t TagOf(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

}  // namespace

size_t PieceTable::Place(std::string_view text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = (hash >> 20) & mask;
  while (slots_[at].id != kNoPiece && (slots_[at].tag != TagOf(hash) || slots_[at].text != text)) {
    at = (at + 1) & mask;
  }
  return at;
}

bool PieceTable::Insert(std::string_view text, int32_t id) {
  if (2 * (used_ + 1) > slots_.size()) {
    std::vector<Slot> old(std::max<size_t>(16, 2 * slots_.size()));
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.id != kNoPiece) slots_[Place(slot.text, Hash(slot.text))] = slot;
    }
  }
  const uint64_t hash = Hash(text);
  Slot& slot = slots_[Place(text, hash)];
  if (slot.id != kNoPiece) return false;
  slot = {text, id, TagOf(hash)};
  ++used_;
  return true;
}

int32_t PieceTable::Find(std::string_view text) const {
  return slots_.empty() ? kNoPiece : slots_[Place(text, Hash(text))].id;
}

}  // namespace llava
