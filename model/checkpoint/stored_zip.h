#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace llava {

// Entries of a zip archive whose members are stored without compression (zip64 included).
// name -> bytes within `archive`. Checksums are not compared. Throws std::runtime_error saying what
// is wrong, also for compressed or encrypted members and names given twice.
std::map<std::string, std::span<const uint8_t>> ListStoredZip(std::span<const uint8_t> archive);

}  // namespace llava
