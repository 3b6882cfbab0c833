#include "tests/client/chat/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>
#include <thread>

#include "tests/support/paths.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPatience = kSlowdown * std::chrono::seconds(60);

pid_t Spawn(const std::vector<std::string>& flags, const std::vector<std::string>& environment,
            posix_spawn_file_actions_t* actions, bool new_session) {
  std::vector<std::string> words = {ProgramPath("llava-chat")};
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> argv, env;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  for (char** entry = environ; *entry != nullptr; ++entry) env.push_back(*entry);
  for (const std::string& entry : environment) env.push_back(const_cast<char*>(entry.c_str()));
  env.push_back(nullptr);

  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t usual;  // RunChat ignores it
  sigemptyset(&usual);
  sigaddset(&usual, SIGPIPE);
  posix_spawnattr_setsigdefault(&attributes, &usual);
  posix_spawnattr_setflags(&attributes, static_cast<short>(POSIX_SPAWN_SETSIGDEF |
                                                           (new_session ? POSIX_SPAWN_SETSID : 0)));
  pid_t pid;
  const int error = posix_spawn(&pid, argv[0], actions, &attributes, argv.data(), env.data());
  posix_spawnattr_destroy(&attributes);
  if (error != 0) throw std::runtime_error("cannot run " + words[0]);
  return pid;
}

void Drain(int fd, std::string& text) {
  char bytes[4096];
  for (ssize_t count; (count = read(fd, bytes, sizeof bytes)) > 0;) {
    text.append(bytes, static_cast<size_t>(count));
  }
  close(fd);
}

int ShellStatus(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Ended RunChat(const std::vector<std::string>& flags, const std::string& input,
              const std::vector<std::string>& environment) {
  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    throw std::runtime_error("cannot make pipes");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  posix_spawn_file_actions_adddup2(&actions, err[1], 2);
  const pid_t pid = Spawn(flags, environment, &actions, /*new_session=*/false);
  posix_spawn_file_actions_destroy(&actions);
  for (int fd : {in[0], out[1], err[1]}) close(fd);

  signal(SIGPIPE, SIG_IGN);  // the program may end without reading
  for (size_t sent = 0; sent < input.size();) {
    const ssize_t count = write(in[1], input.data() + sent, input.size() - sent);
    if (count <= 0) break;
    sent += static_cast<size_t>(count);
  }
  close(in[1]);
  Ended ended;
  std::thread other([&] { Drain(err[0], ended.err); });
  Drain(out[0], ended.out);
  other.join();
  int status = 0;
  waitpid(pid, &status, 0);
  ended.status = ShellStatus(status);
  return ended;
}

Ended RunChatInto(int out, const std::vector<std::string>& flags) {
  int err[2];
  if (pipe2(err, O_CLOEXEC) != 0) throw std::runtime_error("cannot make pipes");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_adddup2(&actions, err[1], 2);
  const pid_t pid = Spawn(flags, {}, &actions, /*new_session=*/false);
  posix_spawn_file_actions_destroy(&actions);
  close(out);
  close(err[1]);
  Ended ended;
  Drain(err[0], ended.err);
  int status = 0;
  waitpid(pid, &status, 0);
  ended.status = ShellStatus(status);
  return ended;
}

ChatOnTerminal::ChatOnTerminal(const std::vector<std::string>& flags) {
  terminal_ = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  char name[64];
  if (terminal_ < 0 || grantpt(terminal_) != 0 || unlockpt(terminal_) != 0 ||
      ptsname_r(terminal_, name, sizeof name) != 0) {
    throw std::runtime_error("cannot open a terminal");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  // The first terminal that a session leader opens becomes its controlling one: Ctrl-C works.
  posix_spawn_file_actions_addopen(&actions, 0, name, O_RDWR, 0);
  posix_spawn_file_actions_adddup2(&actions, 0, 1);
  posix_spawn_file_actions_adddup2(&actions, 0, 2);
  pid_ = Spawn(flags, {}, &actions, /*new_session=*/true);
  posix_spawn_file_actions_destroy(&actions);
}

ChatOnTerminal::~ChatOnTerminal() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(terminal_);
}

void ChatOnTerminal::Type(const std::string& keys) {
  if (write(terminal_, keys.data(), keys.size()) != static_cast<ssize_t>(keys.size())) {
    throw std::runtime_error("cannot type");
  }
}

void ChatOnTerminal::Signal(int signal) { kill(pid_, signal); }

bool ChatOnTerminal::ReadSome() {
  pollfd waiting = {terminal_, POLLIN, 0};
  if (poll(&waiting, 1, 50) <= 0) return false;
  char bytes[4096];
  const ssize_t count = read(terminal_, bytes, sizeof bytes);
  if (count > 0) screen_.append(bytes, static_cast<size_t>(count));
  return count > 0;
}

bool ChatOnTerminal::WaitFor(const std::string& text) {
  const auto deadline = Clock::now() + kPatience;
  while (Clock::now() < deadline) {
    if (const size_t at = screen_.find(text, seen_); at != std::string::npos) {
      seen_ = at + text.size();
      return true;
    }
    ReadSome();
  }
  return false;
}

int ChatOnTerminal::Wait() {
  const auto deadline = Clock::now() + kPatience;
  while (Clock::now() < deadline) {
    ReadSome();
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      while (ReadSome()) {
      }
      return ShellStatus(status);
    }
  }
  return -1;
}

}  // namespace llava
