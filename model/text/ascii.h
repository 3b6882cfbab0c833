#pragma once

#include <string>
#include <string_view>

namespace llava {

// With the letters A to Z made small, all else as it is.
inline std::string Lowered(std::string_view text) {
  std::string lowered(text);
  for (char& c : lowered) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lowered;
}

}  // namespace llava
