#include "client/chat/line_reader.h"

#include <unistd.h>

#include <utility>

namespace llava {

LineReader::LineReader(int fd, Interrupts& interrupts) : fd_(fd), interrupts_(interrupts) {
  termios settings;
  if (tcgetattr(fd_, &settings) != 0 || (settings.c_iflag & IUTF8) != 0) return;
  restore_ = settings;
  settings.c_iflag |= IUTF8;
  tcsetattr(fd_, TCSANOW, &settings);
}

LineReader::~LineReader() {
  if (restore_) tcsetattr(fd_, TCSANOW, &*restore_);
}

LineReader::Result LineReader::Next() {
  while (true) {
    if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      if (line.ends_with('\r')) line.pop_back();
      return {std::move(line), 0};
    }
    if (ended_) {
      if (buffer_.empty()) return {};
      std::string rest;
      rest.swap(buffer_);
      return {std::move(rest), 0};
    }
    if (const int signal = interrupts_.WaitFor(fd_); signal != 0) {
      buffer_.clear();
      return {std::nullopt, signal};
    }
    char bytes[4096];
    const ssize_t count = read(fd_, bytes, sizeof bytes);
    if (count > 0) {
      buffer_.append(bytes, static_cast<size_t>(count));
    } else {
      ended_ = true;
    }
  }
}

}  // namespace llava
