#pragma once

#include <optional>
#include <string>
#include <variant>

#include "client/bench/load.h"
#include "client/chat_client.h"

namespace llava::bench {

struct BenchOptions {
  std::string gateway = "127.0.0.1:8001";
  std::optional<ChatClientTls> tls;  // unset: open connections
  int connections = 1;
  std::string json;  // file for the figures; "-": standard output instead of the table
  LoadOptions load;
};

// The flags of llava-bench, and the files that they name. An exit status instead: 0 after --help or
// --version, 2 after a wrong flag or file, told on standard error.
std::variant<BenchOptions, int> ParseBenchOptions(int argc, const char* const* argv);

}  // namespace llava::bench
