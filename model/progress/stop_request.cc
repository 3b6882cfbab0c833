#include "model/progress/stop_request.h"

#include <atomic>
#include <csignal>
#include <initializer_list>

namespace llava {
namespace {

int living = 0;
std::atomic<int> requested = 0;
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may touch it");

}  // namespace

StopRequest::StopRequest() {
  if (++living > 1) return;
  requested = 0;
  struct sigaction action = {};
  action.sa_handler = [](int signal) { requested = signal; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second one has its usual effect
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

StopRequest::~StopRequest() {
  if (--living > 0) return;
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_DFL);
  requested = 0;
}

bool StopRequest::Requested() { return requested != 0; }

void StopRequest::ThrowIfRequested() {
  if (Requested()) throw Came();
}

int StopRequest::Signal() { return requested; }

}  // namespace llava
