#pragma once

namespace llava {

// Bounds of waiting are multiplied by this: under a sanitizer everything takes longer.
inline constexpr int kSlowdown = LLAVA_SLOWDOWN;

}  // namespace llava
