#pragma once

// Byte-pair encoding as sentencepiece does it: of all neighbours that form a piece, the pair with
// the best score is joined first (the leftmost of equal ones), until none is left.

#include <cstdint>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/text/piece_model.h"

namespace llava {

// One text, one thread. O(n log n).
class BpeEncoder {
 public:
  // All three must outlive the encoder.
  BpeEncoder(const PieceModel& model, const PieceFilter& filter, std::string_view normalized);
  std::vector<PieceRange> Run();

 private:
  struct Symbol {
    int32_t previous, next;  // -1: none
    uint32_t begin, size;    // in the text; size 0: joined to its left neighbour
    bool frozen;             // user-defined: stays as it is
  };
  struct Pair {
    float score;
    int32_t left, right;
    uint32_t size;
    // Worse than: std::priority_queue yields the greatest.
    bool operator<(const Pair& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };

  std::string_view TextOf(const Symbol& s) const { return text_.substr(s.begin, s.size); }
  void Split();
  void Propose(int32_t left, int32_t right);
  void Emit(std::string_view piece);

  const PieceModel& model_;
  const PieceFilter& filter_;
  std::string_view text_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Pair> agenda_;
  // An unused piece may be formed on the way to a longer one; what is left of them comes apart
  // again by the pair that made it last.
  std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> unused_;
  std::vector<PieceRange> out_;
};

}  // namespace llava
