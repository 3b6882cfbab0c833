#include "model/progress/guarded.h"

#include <cstdio>
#include <exception>
#include <stdexcept>

namespace llava {

int RunGuarded(const char* program, const std::function<int()>& work) {
  try {
    return work();
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s: %s\n", program, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", program, error.what());
    return 1;
  }
}

}  // namespace llava
