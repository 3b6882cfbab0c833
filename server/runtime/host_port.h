#pragma once

// Addresses to listen on, as flags name them.

#include <string>

namespace llava {

// "[::1]", as in URLs, without its brackets; anything else as it is.
std::string BareHost(const std::string& host);
// An IP address, or localhost.
bool IsListenHost(const std::string& host);
// "HOST:PORT", an IPv6 address in brackets.
std::string HostPort(const std::string& host, int port);

}  // namespace llava
