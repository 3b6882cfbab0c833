#pragma once

#include <cstdint>
#include <string_view>

namespace llava {

// CRC-32C (Castagnoli) of `bytes`, as carried by TensorHeader. Extends `crc` of what came before.
uint32_t Crc32c(std::string_view bytes, uint32_t crc = 0);

}  // namespace llava
