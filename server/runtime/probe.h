#pragma once

#include <string>

namespace llava {

// Is the service ready whose HTTP port is at `address`, [HOST:]PORT? Empty if it is; else why not.
//
// Asks /readyz, which needs neither key nor client certificate, plain or by TLS, whichever the
// service speaks. Its certificate is not checked: nothing is told to the service, and nothing
// believed of it but its state. Takes a few seconds at most.
std::string WhyNotReady(const std::string& address);

}  // namespace llava
