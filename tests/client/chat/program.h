#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace llava {

// What a program that has ended left behind.
struct Ended {
  int status = -1;  // as in a shell: the exit status, or 128 + the signal that killed it
  std::string out;
  std::string err;
};

// Runs llava-chat with `input` on its standard input (a pipe).
Ended RunChat(const std::vector<std::string>& flags, const std::string& input = "",
              const std::vector<std::string>& environment = {});

// The same with this as its standard output, which is closed here.
Ended RunChatInto(int out, const std::vector<std::string>& flags);

// llava-chat on a terminal of its own. The destructor kills it if it still runs.
class ChatOnTerminal {
 public:
  explicit ChatOnTerminal(const std::vector<std::string>& flags);
  ~ChatOnTerminal();
  ChatOnTerminal(const ChatOnTerminal&) = delete;
  ChatOnTerminal& operator=(const ChatOnTerminal&) = delete;

  // Types keys; "\x03" is Ctrl-C, "\x04" is Ctrl-D.
  void Type(const std::string& keys);
  void Signal(int signal);
  // Waits until `text` is on the screen behind what was waited for before. False: it never came.
  bool WaitFor(const std::string& text);
  // Waits for the end; -1: it did not end.
  int Wait();

  const std::string& screen() const { return screen_; }

 private:
  bool ReadSome();

  int terminal_ = -1;
  pid_t pid_ = -1;
  std::string screen_;
  size_t seen_ = 0;
};

}  // namespace llava
