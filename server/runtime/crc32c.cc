#include "server/runtime/crc32c.h"

#include <boost/crc.hpp>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace llava {
namespace {

#if defined(__x86_64__)

// A byte after the other would be an eighth as fast.
[[gnu::target("sse4.2")]] uint32_t ByInstruction(std::string_view bytes, uint32_t crc) {
  const char* at = bytes.data();
  size_t left = bytes.size();
  uint64_t sum = ~crc;
  for (; left >= sizeof(uint64_t); left -= sizeof(uint64_t), at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, at, sizeof(word));
    sum = _mm_crc32_u64(sum, word);
  }
  auto rest = static_cast<uint32_t>(sum);
  for (; left > 0; --left, ++at) rest = _mm_crc32_u8(rest, static_cast<uint8_t>(*at));
  return ~rest;
}

#endif

uint32_t ReverseBits(uint32_t value) {
  uint32_t reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (value >> i & 1) << (31 - i);
  return reversed;
}

uint32_t ByTable(std::string_view bytes, uint32_t crc) {
  // Boost takes the start value in the polynomial's bit order, ours is the reflected one.
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> sum(
      ReverseBits(crc ^ 0xFFFFFFFF));
  sum.process_bytes(bytes.data(), bytes.size());
  return sum.checksum();
}

}  // namespace

uint32_t Crc32c(std::string_view bytes, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return ByInstruction(bytes, crc);
#endif
  return ByTable(bytes, crc);
}

}  // namespace llava
