#pragma once

#include <string>

namespace llava {

// 32 hexadecimal digits: milliseconds since 1970 (12), then chance. Turns that begin together stand
// together in the store's index, so a commit of many of them writes few of its pages.
std::string NewTurnId();

}  // namespace llava
