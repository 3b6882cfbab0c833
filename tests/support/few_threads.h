#pragma once

#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <system_error>

#include <sys/resource.h>
#include <unistd.h>

namespace llava {

// Runs `start`, which begins hundreds of threads, where memory is left for the stacks of a few, and
// exits: 0 if it threw a std::system_error that names `what`. For EXPECT_EXIT.
[[noreturn]] inline void ExitWithFewThreads(const std::function<void()>& start,
                                            const std::string& what) {
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit stack = {rlim_t{8} << 20, rlim_t{8} << 20};
  const rlim_t memory = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{64} << 20);
  const rlimit few = {memory, memory};
  if (setrlimit(RLIMIT_STACK, &stack) != 0 || setrlimit(RLIMIT_AS, &few) != 0) std::exit(3);
  try {
    start();
  } catch (const std::system_error& error) {
    std::exit(std::string(error.what()).find(what) != std::string::npos ? 0 : 2);
  }
  std::exit(1);
}

}  // namespace llava
