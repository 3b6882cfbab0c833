#pragma once

// Ctrl-C and SIGTERM as a question that work asks between its steps.

namespace llava {

// While one lives, the first SIGINT or SIGTERM only makes Requested() true, until its end; a second
// one of the same ends the process at once. At most one at a time; Requested is safe on every
// thread.
class StopRequest {
 public:
  StopRequest();
  ~StopRequest();
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  static bool Requested();
  // The signal that came, 0 if none did.
  static int Signal();
};

}  // namespace llava
