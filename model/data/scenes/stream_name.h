#pragma once

#include <cstdint>
#include <string_view>

namespace llava {

// FNV-1a: the stream of random numbers of what has a name. It must not change.
inline uint64_t StreamNamed(std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char byte : name) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3;
  return hash;
}

}  // namespace llava
