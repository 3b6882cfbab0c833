#pragma once

#include <chrono>
#include <string>

namespace llava {

// Is the service ready whose HTTP port is at `address`, [HOST:]PORT? Empty if it is; else why not.
//
// Asks /readyz, which needs neither key nor client certificate, plain or by TLS, whichever the
// service speaks. Its certificate is not checked: nothing is told to the service, and nothing
// believed of it but its state. Each step of it may take as long as `patience`.
std::string WhyNotReady(const std::string& address,
                        std::chrono::seconds patience = std::chrono::seconds(2));

}  // namespace llava
