#pragma once

struct sockaddr;

namespace llava {

// False for every address that is not one of the public internet: loopback, private, link-local,
// shared, reserved, multicast, documentation, and those of IPv6 that carry another address inside
// (IANA's special-purpose address registries). False for what is not IP.
bool IsPublicAddress(const sockaddr& address);

}  // namespace llava
