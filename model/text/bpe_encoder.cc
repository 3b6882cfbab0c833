#include "model/text/bpe_encoder.h"

#include <algorithm>

#include "model/text/utf8.h"

namespace llava {
BpeEncoder::BpeEncoder(const PieceModel& model, const PieceFilter& filter,
                       std::string_view normalized)
    : model_(model), filter_(filter), text_(normalized) {}

void BpeEncoder::Split() {
  symbols_.reserve(text_.size());
  for (size_t begin = 0; begin < text_.size();) {
    const int32_t index = static_cast<int32_t>(symbols_.size());
    size_t size = filter_.atomic.Longest(text_.substr(begin)).length;
    const bool frozen = size > 0;
    if (!frozen) size = std::min(Utf8SizeByLead(text_[begin]), text_.size() - begin);
    symbols_.push_back(
        {index - 1, index + 1, static_cast<uint32_t>(begin), static_cast<uint32_t>(size), frozen});
    begin += size;
  }
  symbols_.back().next = -1;
}

void BpeEncoder::Propose(int32_t left, int32_t right) {
  if (left < 0 || right < 0) return;
  const Symbol &a = symbols_[left], &b = symbols_[right];
  const size_t size = a.size + b.size;
  if (a.frozen || b.frozen || size > model_.longest_piece_) return;
  const std::string_view joined = text_.substr(a.begin, size);
  const int32_t id = model_.pieces_.Find(joined);
  if (id == kNoPiece || filter_.blocked[id]) return;
  agenda_.push({model_.proto_.pieces[id].score, left, right, static_cast<uint32_t>(size)});
  if (model_.IsUnused(id)) unused_[joined] = {TextOf(a), TextOf(b)};
}

void BpeEncoder::Emit(std::string_view piece) {
  int32_t id = model_.IdOf(piece);
  if (id != kNoPiece && model_.IsUnused(id)) {
    if (auto parts = unused_.find(piece); parts != unused_.end()) {
      Emit(parts->second.first);
      Emit(parts->second.second);
      return;
    }
  }
  if (id == kNoPiece || filter_.blocked[id]) id = model_.unk_id_;
  const size_t begin = piece.data() - text_.data();
  out_.push_back({id, begin, begin + piece.size()});
}

std::vector<PieceRange> BpeEncoder::Run() {
  Split();
  for (size_t i = 1; i < symbols_.size(); ++i) {
    Propose(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i));
  }
  while (!agenda_.empty()) {
    const Pair best = agenda_.top();
    agenda_.pop();
    Symbol &left = symbols_[best.left], &right = symbols_[best.right];
    // Outdated if one of them has been joined to something else since.
    if (left.size == 0 || right.size == 0 || left.size + right.size != best.size) continue;
    left.size += right.size;
    right.size = 0;
    left.next = right.next;
    if (right.next >= 0) symbols_[right.next].previous = best.left;
    Propose(left.previous, best.left);
    Propose(best.left, left.next);
  }
  // The parts of an unused piece stand where it was made last, not here: places are counted anew.
  size_t end = 0;
  for (int32_t i = 0; i >= 0; i = symbols_[i].next) Emit(TextOf(symbols_[i]));
  for (PieceRange& piece : out_) {
    const size_t size = piece.end - piece.begin;
    piece.begin = end;
    end += size;
    piece.end = end;
  }
  return std::move(out_);
}

}  // namespace llava
