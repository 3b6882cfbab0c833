#include "model/text/normalizer.h"

#include <stdexcept>

#include "model/text/utf8.h"

namespace llava {
namespace {

uint32_t LittleEndian32(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

CharsMap::CharsMap(std::string_view blob) {
  const size_t size = blob.size() < 4 ? 0 : LittleEndian32(blob);
  if (size == 0 || size % 4 != 0 || size >= blob.size() - 4) {
    throw std::runtime_error(
        "the character rules (precompiled_charsmap) of tokenizer.model are damaged: table of " +
        std::to_string(size) + " bytes in " + std::to_string(blob.size()));
  }
  units_.resize(size / 4);
  for (size_t i = 0; i < units_.size(); ++i) units_[i] = LittleEndian32(blob.substr(4 + 4 * i));
  texts_ = blob.substr(4 + size);
}

CharsMap::Rule CharsMap::Find(std::string_view text) const {
  // A unit holds the byte that leads to it (bits 0-7; bit 31 set for values), whether a value hangs
  // below it (bit 8) and the xor distance of its children (bits 10-30, times 256 if bit 9 is set).
  auto offset = [](uint32_t unit) -> size_t {
    return static_cast<uint32_t>(unit >> 10 << ((unit & 1u << 9) >> 6));
  };
  Rule rule;
  size_t node = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (node >= units_.size()) break;
    const uint32_t unit = units_[node];
    if ((unit & 0x800000FFu) != byte) break;
    node ^= offset(unit);
    if (unit >> 8 & 1) {
      const size_t begin = node < units_.size() ? units_[node] & 0x7FFFFFFFu : texts_.size();
      const size_t end = texts_.find('\0', begin);
      if (begin >= texts_.size() || end == std::string::npos) {
        throw std::runtime_error(
            "the character rules (precompiled_charsmap) of tokenizer.model are damaged: a rule "
            "points outside of its texts");
      }
      rule = {i + 1, std::string_view(texts_).substr(begin, end - begin)};
    }
  }
  return rule;
}

Normalizer::Normalizer(const ModelProto& model)
    : remove_extra_whitespaces_(model.remove_extra_whitespaces),
      space_(model.escape_whitespaces ? kSpaceMark : std::string_view(" ")) {
  if (!model.precompiled_charsmap.empty()) map_.emplace_back(model.precompiled_charsmap);
}

Normalizer::Step Normalizer::NextStep(std::string_view text, const Trie& atomic) const {
  if (size_t length = atomic.Longest(text).length; length > 0) {
    return {text.substr(0, length), length};
  }
  if (!map_.empty()) {
    CharsMap::Rule rule = map_.front().Find(text);
    if (rule.length > 0) return {rule.replacement, rule.length};
  }
  Utf8Char c = ReadUtf8(text);
  if (c.state != Utf8Char::State::kWhole) return {kReplacementCharacter, 1};
  return {text.substr(0, c.size), c.size};
}

NormalizedText Normalizer::Normalize(std::string_view text, bool dummy_prefix,
                                     const Trie& atomic) const {
  NormalizedText out;
  size_t consumed = 0;
  if (remove_extra_whitespaces_) {
    while (consumed < text.size()) {
      Step step = NextStep(text.substr(consumed), atomic);
      if (step.text != " ") break;
      consumed += step.consumed;
    }
  }
  if (consumed == text.size()) {  // nothing but spaces
    out.source.push_back(consumed);
    return out;
  }
  const size_t expected = text.size() - consumed + 3 * space_.size();
  out.text.reserve(expected);
  out.source.reserve(expected + 1);
  auto append = [&out, &consumed](std::string_view piece) {
    out.text += piece;
    out.source.insert(out.source.end(), piece.size(), consumed);
  };
  if (dummy_prefix) append(space_);
  bool after_space = remove_extra_whitespaces_;
  while (consumed < text.size()) {
    Step step = NextStep(text.substr(consumed), atomic);
    std::string_view piece = step.text;
    while (after_space && piece.starts_with(' ')) piece.remove_prefix(1);
    if (!piece.empty()) {
      after_space = remove_extra_whitespaces_ && piece.ends_with(' ');
      for (size_t space; (space = piece.find(' ')) != piece.npos;) {
        append(piece.substr(0, space));
        append(space_);
        piece.remove_prefix(space + 1);
      }
      append(piece);
    }
    consumed += step.consumed;
  }
  if (remove_extra_whitespaces_) {
    while (out.text.ends_with(space_)) {
      out.text.resize(out.text.size() - space_.size());
      consumed = out.source[out.text.size()];
    }
    out.source.resize(out.text.size());
  }
  out.source.push_back(consumed);
  return out;
}

}  // namespace llava
