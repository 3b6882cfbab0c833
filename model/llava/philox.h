#pragma once

// Counter-based random numbers: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", 2011). No state, so any draw can be repeated from its two numbers.

#include <array>
#include <cstdint>

namespace llava {

// Four random words for a counter and a key.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Uniform in [0, 1), a pure function of both numbers, with 53 random bits.
double UniformAt(uint64_t seed, uint64_t position);

}  // namespace llava
