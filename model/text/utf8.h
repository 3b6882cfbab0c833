#pragma once

// UTF-8, read strictly: overlong forms, surrogates and values above U+10FFFF are broken.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace llava {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Char {
  enum class State { kWhole, kBroken, kUnfinished };
  State state = State::kBroken;
  // Bytes of the character; of broken or unfinished ones the longest part that could begin a
  // character, at least 1 (so U+FFFD stands once for each such part, as Unicode recommends).
  size_t size = 1;
  char32_t value = 0;  // of whole characters
};

// The first character of `bytes`, which must not be empty.
Utf8Char ReadUtf8(std::string_view bytes);

// Size of a character by its first byte alone, as sentencepiece counts in normalised text.
inline size_t Utf8SizeByLead(char lead) {
  const uint8_t byte = static_cast<uint8_t>(lead);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// Moves the whole characters at the front of `pending` to the result, U+FFFD in place of broken
// ones. What could become a character with more bytes stays in `pending`.
std::string TakeWholeUtf8(std::string& pending);

// The first bytes, at most so many, without the beginning of a character that would be cut.
std::string_view CutUtf8(std::string_view text, size_t max_bytes);

// Without the white space (as Unicode defines it) at both ends.
std::string_view StripUtf8(std::string_view text);
std::string_view StripUtf8Right(std::string_view text);

}  // namespace llava
