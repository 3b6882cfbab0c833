#pragma once

namespace llava {

// Turns SIGINT, SIGTERM and SIGHUP into something to wait for.
//
// Make it before any thread begins: it blocks these signals for the calling thread and all that
// come from it. WaitFor is thread-safe; each signal goes to one waiter.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Waits until `fd` can be read (returns 0) or a signal is there (returns its number).
  int WaitFor(int fd);

 private:
  int signal_fd_;
};

}  // namespace llava
