#include "client/chat/interrupts.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <initializer_list>
#include <system_error>

namespace llava {

Interrupts::Interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal_fd_ = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  if (signal_fd_ < 0) throw std::system_error(errno, std::generic_category(), "signalfd");
}

Interrupts::~Interrupts() { close(signal_fd_); }

int Interrupts::WaitFor(int fd) {
  pollfd fds[] = {{signal_fd_, POLLIN, 0}, {fd, POLLIN, 0}};
  while (true) {
    if (poll(fds, 2, -1) < 0) continue;  // EINTR
    signalfd_siginfo info;
    if (fds[0].revents != 0 && read(signal_fd_, &info, sizeof info) == sizeof info) {
      return static_cast<int>(info.ssi_signo);
    }
    if (fds[1].revents != 0) return 0;
  }
}

}  // namespace llava
