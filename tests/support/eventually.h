#pragma once

#include <chrono>
#include <functional>
#include <thread>

#include "tests/support/slowdown.h"

namespace llava {

// Waits, a minute at most (times kSlowdown), for what other threads or processes bring about: is it
// so in the end?
inline bool Eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kSlowdown * std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace llava
