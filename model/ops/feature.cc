#include "model/ops/feature.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

namespace llava::ops {
namespace {

constexpr std::array<const char*, 5> kNames = {"flash", "norm", "sampling", "tiles", "stream"};

struct Switches {
  std::array<std::atomic<bool>, kNames.size()> on;

  Switches() {
    for (std::atomic<bool>& one : on) one = true;
    const char* const without = std::getenv("LLAVA_CUDA_WITHOUT");
    std::istringstream words(without ? without : "");
    for (std::string word; std::getline(words, word, ',');) {
      size_t i = 0;
      while (i < kNames.size() && word != kNames[i]) ++i;
      if (i == kNames.size()) {
        throw std::invalid_argument("LLAVA_CUDA_WITHOUT: \"" + word +
                                    "\" is none of flash, norm, sampling, tiles, stream");
      }
      on[i] = false;
    }
  }
};

std::atomic<bool>& SwitchOf(Feature feature) {
  static Switches switches;
  return switches.on[static_cast<size_t>(feature)];
}

}  // namespace

bool Enabled(Feature feature) { return SwitchOf(feature).load(std::memory_order_relaxed); }
void Enable(Feature feature, bool on) { SwitchOf(feature) = on; }

bool BuiltWithCuda() {
#ifdef LLAVA_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace llava::ops
