#include "model/tools/memory_for.h"

#include <cstdio>
#include <fstream>

namespace llava {
namespace {

uint64_t FreeMemory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    unsigned long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu", &kilobytes) == 1) return kilobytes << 10;
  }
  return 0;
}

}  // namespace

bool MemoryForSelfTest(uint64_t bytes, const std::string& what) {
  const uint64_t there = FreeMemory();
  if (bytes <= there) return true;
  std::fprintf(stderr,
               "llava-model: no self-test for the %s: it takes %.1f GB of memory, %.1f are free\n",
               what.c_str(), static_cast<double>(bytes) / 1e9, static_cast<double>(there) / 1e9);
  return false;
}

}  // namespace llava
