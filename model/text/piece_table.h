#pragma once

// Text -> id of a piece: an open hash table, several times as fast as std::unordered_map in the
// innermost loop of BPE.

#include <cstdint>
#include <string_view>
#include <vector>

namespace llava {

// No piece has this id.
inline constexpr int32_t kNoPiece = -1;

// One writer, then const and thread-safe.
class PieceTable {
 public:
  // `text` must outlive the table and `id` must not be negative. False if the text is there
  // already.
  bool Insert(std::string_view text, int32_t id);
  // kNoPiece if the text is not there.
  int32_t Find(std::string_view text) const;

 private:
  struct Slot {
    std::string_view text;
    int32_t id = kNoPiece;
    uint32_t tag = 0;  // upper half of the hash
  };

  // Where `text` is, or the empty slot where it would be.
  size_t Place(std::string_view text, uint64_t hash) const;

  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t used_ = 0;
};

}  // namespace llava
