#include "server/runtime/crc32c.h"

#include <boost/crc.hpp>

namespace llava {
namespace {

uint32_t ReverseBits(uint32_t value) {
  uint32_t reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (value >> i & 1) << (31 - i);
  return reversed;
}

}  // namespace

uint32_t Crc32c(std::string_view bytes, uint32_t crc) {
  // Boost takes the start value in the polynomial's bit order, ours is the reflected one.
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> sum(
      ReverseBits(crc ^ 0xFFFFFFFF));
  sum.process_bytes(bytes.data(), bytes.size());
  return sum.checksum();
}

}  // namespace llava
