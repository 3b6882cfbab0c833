#include "model/text/unigram_encoder.h"

#include <algorithm>
#include <cstdint>

#include "model/text/utf8.h"

namespace llava {
namespace {

constexpr float kUnknownPenalty = 10;

}  // namespace

std::vector<PieceRange> UnigramEncoder::Run() const {
  struct Best {  // of the ways that end at a position
    int32_t id = kNoPiece;
    float score = 0;
    int32_t begin = -1;  // of the last piece; -1: no way ends here
  };
  std::vector<Best> best(text_.size() + 1);
  // Sums are formed in double and kept in float, as in the tool: equal scores must stay equal.
  auto offer = [&best](size_t end, size_t begin, int32_t id, double score) {
    if (best[end].begin < 0 || score > best[end].score) {
      best[end] = {id, static_cast<float>(score), static_cast<int32_t>(begin)};
    }
  };
  const float unknown_score = model_.min_score_ - kUnknownPenalty;
  for (size_t begin = 0; begin < text_.size();) {
    const size_t char_size = std::min(Utf8SizeByLead(text_[begin]), text_.size() - begin);
    const float so_far = best[begin].score;
    bool have_char = false;
    model_.trie_.VisitPrefixes(text_.substr(begin), [&](size_t length, int32_t id) {
      if (model_.IsUnused(id) || filter_.blocked[id]) return;
      const double score = model_.IsUserDefined(id)
                               ? static_cast<float>(length) * model_.max_score_ - 0.1
                               : model_.proto_.pieces[id].score;
      offer(begin + length, begin, id, score + so_far);
      have_char |= length == char_size;
    });
    if (!have_char) {
      const float score = unknown_score + so_far;
      offer(begin + char_size, begin, model_.unk_id_, score);
    }
    begin += char_size;
  }
  std::vector<PieceRange> out;
  for (size_t end = text_.size(); end > 0;) {
    const size_t begin = static_cast<size_t>(best[end].begin);
    out.push_back({best[end].id, begin, end});
    end = begin;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace llava
