#pragma once

#include <chrono>

namespace llava {

// A time as metrics and logs have it.
template <typename Number, typename Period>
double Seconds(std::chrono::duration<Number, Period> time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace llava
