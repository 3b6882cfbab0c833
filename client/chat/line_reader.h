#pragma once

#include <termios.h>

#include <optional>
#include <string>

#include "client/chat/interrupts.h"

namespace llava {

// Reads lines from a file descriptor and can be interrupted by a signal. On a terminal the kernel
// does the line editing; it is told that the text is UTF-8, so that backspace takes whole
// characters. Not thread-safe.
class LineReader {
 public:
  struct Result {
    std::optional<std::string> line;  // without its newline; nothing: end of input, or a signal
    int signal = 0;
  };

  LineReader(int fd, Interrupts& interrupts);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  Result Next();

 private:
  const int fd_;
  Interrupts& interrupts_;
  std::optional<termios> restore_;
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace llava
