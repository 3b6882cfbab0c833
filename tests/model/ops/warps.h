#pragma once

#include <exception>
#include <functional>

namespace llava::cuda {

// The warps of a block on the host, each on a stack of its own, one at a time: one goes on until it
// waits for the others or has ended, then comes the next. So a warp is as far ahead of the others
// as the barriers between them let it be, and a barrier that is missing shows in what is computed.
class Warps {
 public:
  // Under sanitizers, which know nothing of such stacks, all threads of a block are one.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr bool kApart = false;
#else
  static constexpr bool kApart = true;
#endif

  // Runs `body` for 0 <= warp < count, or from the last to the first. Throws what the first of them
  // threw, when all have ended. Not within another Run of the thread.
  static void Run(int count, bool backwards, const std::function<void(int warp)>& body);
  // The barrier, called by a body. Nothing outside of Run.
  static void Sync();
};

}  // namespace llava::cuda
