#pragma once

// Ctrl-C and SIGTERM as a question that work asks between its steps.

#include <exception>

namespace llava {

// While one lives, the first SIGINT or SIGTERM only makes Requested() true, until its end; a second
// one of the same ends the process at once. One within the life of another changes nothing. Made
// and destroyed on one thread; Requested is safe on every thread.
class StopRequest {
 public:
  // What ThrowIfRequested throws.
  struct Came : std::exception {
    const char* what() const noexcept override { return "stopped by a signal"; }
  };

  StopRequest();
  ~StopRequest();
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  static bool Requested();
  // For work that has nothing to keep when it is stopped.
  static void ThrowIfRequested();
  // The signal that came, 0 if none did.
  static int Signal();
};

}  // namespace llava
