#pragma once

// Addresses of this machine, as flags and URLs name them.

#include <string>

namespace llava {

// "localhost", or an address that only this machine reaches, in brackets or without.
// "127.0.0.1.example.com" is neither.
bool IsLoopbackHost(const std::string& host);
// "[::1]", as in URLs, without its brackets; anything else as it is.
std::string BareHost(const std::string& host);
// An IP address, or localhost.
bool IsListenHost(const std::string& host);
// "HOST:PORT", an IPv6 address in brackets.
std::string HostPort(const std::string& host, int port);

}  // namespace llava
