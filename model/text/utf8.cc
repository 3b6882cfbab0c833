#include "model/text/utf8.h"

namespace llava {
namespace {

bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

}  // namespace

Utf8Char ReadUtf8(std::string_view bytes) {
  auto byte = [bytes](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Char::State::kWhole, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The range of the second byte keeps out overlong forms, surrogates and too large values.
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t value = lead & (0x7F >> size);
  for (size_t i = 1; i < size; ++i) {
    if (i == bytes.size()) return {Utf8Char::State::kUnfinished, i, 0};
    const bool good = i == 1 ? byte(1) >= low && byte(1) <= high : (byte(i) & 0xC0) == 0x80;
    if (!good) return {Utf8Char::State::kBroken, i, 0};
    value = value << 6 | (byte(i) & 0x3F);
  }
  return {Utf8Char::State::kWhole, size, value};
}

std::string TakeWholeUtf8(std::string& pending) {
  std::string whole;
  size_t done = 0;
  while (done < pending.size()) {
    std::string_view rest = std::string_view(pending).substr(done);
    Utf8Char c = ReadUtf8(rest);
    if (c.state == Utf8Char::State::kUnfinished) break;
    whole += c.state == Utf8Char::State::kWhole ? rest.substr(0, c.size) : kReplacementCharacter;
    done += c.size;
  }
  pending.erase(0, done);
  return whole;
}

std::string_view CutUtf8(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  constexpr size_t kLongest = 4;
  size_t begin = max_bytes;  // of the character that this byte belongs to
  while (begin > 0 && max_bytes - begin < kLongest && (text[begin] & 0xC0) == 0x80) --begin;
  const bool within = (text[begin] & 0xC0) == 0xC0;  // else broken: any cut is as good
  return text.substr(0, within ? begin : max_bytes);
}

std::string_view StripUtf8Right(std::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    Utf8Char c = ReadUtf8(text.substr(begin));
    if (c.state != Utf8Char::State::kWhole || begin + c.size != text.size() || !IsSpace(c.value)) {
      break;
    }
    text = text.substr(0, begin);
  }
  return text;
}

std::string_view StripUtf8(std::string_view text) {
  text = StripUtf8Right(text);
  while (!text.empty()) {
    Utf8Char c = ReadUtf8(text);
    if (c.state != Utf8Char::State::kWhole || !IsSpace(c.value)) break;
    text.remove_prefix(c.size);
  }
  return text;
}

}  // namespace llava
