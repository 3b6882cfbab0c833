#include "server/device/background_thread.h"

#include <sys/resource.h>

#include <exception>
#include <thread>

namespace llava {
namespace {

constexpr int kLowestPriority = 19;

}  // namespace

void RunInBackground(const std::function<void()>& work) {
  std::exception_ptr failure;
  std::thread thread([&] {
    // Of this thread alone: Linux counts niceness by thread. Not the class of idle threads, which
    // may wait for ever with a lock that others need.
    setpriority(PRIO_PROCESS, 0, kLowestPriority);
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  });
  thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace llava
