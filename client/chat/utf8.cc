#include "client/chat/utf8.h"

#include <cstdint>

namespace llava {
namespace {

// Takes one character off the front of `text`. False: it is not well-formed there.
bool TakeCharacter(std::string_view& text, uint32_t& character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  size_t length = 1;
  uint32_t smallest = 0;
  if (first < 0x80) {
    character = first;
  } else if ((first & 0xE0) == 0xC0) {
    length = 2, smallest = 0x80, character = first & 0x1F;
  } else if ((first & 0xF0) == 0xE0) {
    length = 3, smallest = 0x800, character = first & 0x0F;
  } else if ((first & 0xF8) == 0xF0) {
    length = 4, smallest = 0x10000, character = first & 0x07;
  } else {
    return false;
  }
  if (text.size() < length) return false;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return false;
    character = character << 6 | (byte(i) & 0x3F);
  }
  if (character < smallest || character > 0x10FFFF) return false;
  if (character >= 0xD800 && character <= 0xDFFF) return false;
  text.remove_prefix(length);
  return true;
}

}  // namespace

bool IsUtf8(std::string_view text) {
  uint32_t character;
  while (!text.empty()) {
    if (!TakeCharacter(text, character)) return false;
  }
  return true;
}

std::string WithoutControls(std::string_view text) {
  std::string result;
  uint32_t character;
  while (!text.empty()) {
    const std::string_view before = text;
    if (!TakeCharacter(text, character)) return result;
    const bool control = (character < 0x20 && character != '\n' && character != '\t') ||
                         (character >= 0x7F && character < 0xA0);
    result += control ? "\uFFFD" : before.substr(0, before.size() - text.size());
  }
  return result;
}

}  // namespace llava
