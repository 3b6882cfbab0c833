// llava-probe: is a service ready? The health check of the images, which have no HTTP client.

#include <csignal>
#include <cstdio>
#include <string>

#include "server/runtime/probe.h"

namespace {

constexpr char kUsage[] =
    "usage: llava-probe [HOST:]PORT, of the HTTP of a service; exit status 0 if it is ready, "
    "1 if not, 2 of a wrong command line\n";

}  // namespace

int main(int argc, char** argv) {
  const std::string argument = argc == 2 ? argv[1] : "";
  if (argument == "--help" || argument == "-h") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (argument.empty() || argument[0] == '-') {
    std::fprintf(stderr, "llava-probe: %s", kUsage);
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  const std::string reason = llava::WhyNotReady(argument);
  if (!reason.empty()) std::fprintf(stderr, "llava-probe: %s\n", reason.c_str());
  return reason.empty() ? 0 : 1;
}
