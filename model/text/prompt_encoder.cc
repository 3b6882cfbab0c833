#include "model/text/prompt_encoder.h"

#include <algorithm>

namespace llava {
namespace {

// `text` with a "▁" in front (if `prefix`) and every other "▁" made a space, which is what it will
// become anyway: nobody can write a "▁" that differs from a space. Remembers the places.
class MarkedText {
 public:
  MarkedText(std::string_view text, bool prefix) : prefix_(prefix ? kSpaceMark.size() : 0) {
    if (prefix) text_ = kSpaceMark;
    size_t done = 0;
    for (size_t mark; (mark = text.find(kSpaceMark, done)) != text.npos;) {
      text_.append(text.substr(done, mark - done)).push_back(' ');
      shortened_.push_back(text_.size());
      done = mark + kSpaceMark.size();
    }
    text_ += text.substr(done);
  }
  const std::string& text() const { return text_; }
  // Place in the given text of a place in text().
  size_t Source(size_t place) const {
    if (place <= prefix_) return 0;
    const auto before = std::upper_bound(shortened_.begin(), shortened_.end(), place);
    return place - prefix_ + (before - shortened_.begin()) * (kSpaceMark.size() - 1);
  }

 private:
  size_t prefix_;
  std::string text_;
  std::vector<size_t> shortened_;  // places in text_ right after a former "▁"
};

}  // namespace

PromptEncoder::PromptEncoder(const PieceModel& model, const Trie& specials,
                             const PieceFilter& filter, const TokenizerOptions& options)
    : model_(model), specials_(specials), filter_(filter), options_(options) {}

std::vector<TokenRange> PromptEncoder::Encode(std::span<const PromptSpan> spans, int32_t bos_id) {
  if (bos_id >= 0) out_.push_back({bos_id, 0, 0});
  std::string trusted;  // neighbouring template spans are one text: a special token may cross them
  for (size_t i = 0; i < spans.size(); ++i) {
    const PromptSpan& span = spans[i];
    switch (span.kind) {
      case PromptSpan::Kind::kTemplate:
        trusted += span.text;
        if (i + 1 == spans.size() || spans[i + 1].kind != PromptSpan::Kind::kTemplate) {
          AddTrusted(trusted);
          trusted.clear();
        }
        break;
      case PromptSpan::Kind::kUser:
        AddPlain(span.text);
        break;
      case PromptSpan::Kind::kImage:
        AddSpecial(kImageToken, span.text.size());
        if (!options_.image_inline) at_start_ = true, after_special_ = false;
        break;
      case PromptSpan::Kind::kTokens:
        AddTokens(span.tokens);
        break;
    }
  }
  Flush();
  return std::move(out_);
}

void PromptEncoder::AddTrusted(std::string_view text) {
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const Trie::Match special = specials_.Longest(text.substr(i));
    if (special.length == 0) {
      ++i;
      continue;
    }
    AddPlain(text.substr(begin, i - begin));
    AddSpecial(special.value, special.length);
    begin = i += special.length;
  }
  AddPlain(text.substr(begin));
}

void PromptEncoder::AddPlain(std::string_view text) {
  if (plain_.empty()) plain_begin_ = position_;
  plain_ += text;
  position_ += text.size();
}

void PromptEncoder::AddSpecial(int32_t id, size_t source_size) {
  Flush();
  out_.push_back({id, position_, position_ + source_size});
  position_ += source_size;
  at_start_ = false;
  after_special_ = true;
}

void PromptEncoder::AddTokens(std::span<const int32_t> ids) {
  if (ids.empty()) return;
  Flush();
  for (int32_t id : ids) out_.push_back({id, position_, position_});
  const int32_t last = ids.back();
  const auto num_pieces = static_cast<int32_t>(model_.size());
  at_start_ = false;
  after_special_ = last >= num_pieces || (last >= 0 && filter_.blocked[last]);
}

void PromptEncoder::Flush() {
  if (plain_.empty()) return;
  if (options_.legacy) {
    const bool wanted = model_.proto().add_dummy_prefix || options_.prefix_after_special;
    const bool prefix = wanted && (at_start_ || after_special_);
    model_.Encode(plain_, prefix, filter_, plain_begin_, out_);
  } else {
    bool prefix = at_start_ || (options_.prefix_after_special && after_special_);
    if (options_.image_inline && (plain_.starts_with(' ') || plain_.starts_with(kSpaceMark))) {
      prefix = false;
    }
    const MarkedText marked(plain_, prefix);
    const size_t first = out_.size();
    model_.Encode(marked.text(), false, filter_, 0, out_);
    for (size_t i = first; i < out_.size(); ++i) {
      out_[i].begin = plain_begin_ + marked.Source(out_[i].begin);
      out_[i].end = plain_begin_ + marked.Source(out_[i].end);
    }
  }
  plain_.clear();
  at_start_ = false;
  after_special_ = false;
}

}  // namespace llava
