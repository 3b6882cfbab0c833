#pragma once

#include <string>
#include <string_view>

namespace llava {

// True when all of `text` is well-formed UTF-8 (no overlong forms, no surrogates).
bool IsUtf8(std::string_view text);

// `text` with what would steer a terminal (control characters but newline and tab) replaced by
// U+FFFD. `text` must be well-formed UTF-8.
std::string WithoutControls(std::string_view text);

}  // namespace llava
