#include "server/gateway/public_address.h"

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace llava {
namespace {

struct Range4 {
  uint32_t network;
  int bits;
};

constexpr uint32_t Ip(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return a << 24 | b << 16 | c << 8 | d;
}

constexpr std::array kNotPublic4 = {
    Range4{Ip(0, 0, 0, 0), 8},      Range4{Ip(10, 0, 0, 0), 8},     Range4{Ip(100, 64, 0, 0), 10},
    Range4{Ip(127, 0, 0, 0), 8},    Range4{Ip(169, 254, 0, 0), 16}, Range4{Ip(172, 16, 0, 0), 12},
    Range4{Ip(192, 0, 0, 0), 24},   Range4{Ip(192, 0, 2, 0), 24},   Range4{Ip(192, 88, 99, 0), 24},
    Range4{Ip(192, 168, 0, 0), 16}, Range4{Ip(198, 18, 0, 0), 15},  Range4{Ip(198, 51, 100, 0), 24},
    Range4{Ip(203, 0, 113, 0), 24}, Range4{Ip(224, 0, 0, 0), 4},    Range4{Ip(240, 0, 0, 0), 4}};

bool IsPublic4(uint32_t address) {
  return std::none_of(kNotPublic4.begin(), kNotPublic4.end(), [address](const Range4& range) {
    return (address ^ range.network) >> (32 - range.bits) == 0;
  });
}

bool IsPublic6(const in6_addr& address) {
  const uint8_t* bytes = address.s6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&address)) {
    return IsPublic4(Ip(bytes[12], bytes[13], bytes[14], bytes[15]));
  }
  if ((bytes[0] & 0xe0) != 0x20) return false;  // global unicast is 2000::/3
  const uint32_t head = Ip(bytes[0], bytes[1], bytes[2], bytes[3]);
  return head >> 9 != 0x20010000u >> 9       // 2001::/23, protocols, Teredo among them
         && head != 0x20010db8u              // documentation
         && head >> 16 != 0x2002u            // 6to4
         && head >> 12 != 0x3fff0000u >> 12  // documentation
      ;
}

}  // namespace

bool IsPublicAddress(const sockaddr& address) {
  // Copied: the bytes need not lie as these types want.
  if (address.sa_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &address, sizeof v4);
    return IsPublic4(ntohl(v4.sin_addr.s_addr));
  }
  if (address.sa_family == AF_INET6) {
    sockaddr_in6 v6;
    std::memcpy(&v6, &address, sizeof v6);
    return IsPublic6(v6.sin6_addr);
  }
  return false;
}

}  // namespace llava
