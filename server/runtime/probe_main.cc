// llava-probe: is a service ready? The health check of the images, which have no HTTP client.

#include <csignal>
#include <cstdio>
#include <string>

#include "server/runtime/probe.h"

int main(int argc, char** argv) {
  if (argc != 2 || argv[1][0] == '-') {
    std::fprintf(
        stderr,
        "llava-probe: usage: llava-probe [HOST:]PORT, of the HTTP of a service; exit status "
        "0 if it is ready, else 1\n");
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  const std::string reason = llava::WhyNotReady(argv[1]);
  if (!reason.empty()) std::fprintf(stderr, "llava-probe: %s\n", reason.c_str());
  return reason.empty() ? 0 : 1;
}
