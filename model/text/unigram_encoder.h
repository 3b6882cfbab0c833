#pragma once

// Unigram encoding as sentencepiece does it: the most probable way to cut the text into pieces
// (Viterbi over byte positions).

#include <string_view>
#include <vector>

#include "model/text/piece_model.h"

namespace llava {

// One text, one thread. O(n) for a bounded piece length.
class UnigramEncoder {
 public:
  // All three must outlive the encoder.
  UnigramEncoder(const PieceModel& model, const PieceFilter& filter, std::string_view normalized)
      : model_(model), filter_(filter), text_(normalized) {}
  std::vector<PieceRange> Run() const;

 private:
  const PieceModel& model_;
  const PieceFilter& filter_;
  std::string_view text_;
};

}  // namespace llava
