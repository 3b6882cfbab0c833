// llava-bench: load for a gateway, and what it makes of it.
#include <grpcpp/create_channel.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/bench/load.h"
#include "client/bench/options.h"
#include "client/bench/report.h"

namespace llava::bench {
namespace {

std::atomic<bool> interrupted{false};
std::atomic<int> interrupted_by{0};  // the signal
// Written by a signal handler.
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

std::shared_ptr<grpc::Channel> Connect(const BenchOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  return grpc::CreateCustomChannel(options.gateway, MakeCredentials(options.tls), arguments);
}

void Print(const Progress& progress) {
  std::fprintf(stderr, "%4.0f s%s: %llu turns, %llu failed, %llu pieces, %d sessions\n",
               progress.seconds, progress.warming_up ? " (warm-up)" : "",
               static_cast<unsigned long long>(progress.turns),
               static_cast<unsigned long long>(progress.failed),
               static_cast<unsigned long long>(progress.pieces), progress.running);
}

int Main(int argc, char** argv) {
  auto parsed = ParseBenchOptions(argc, argv);
  if (const int* status = std::get_if<int>(&parsed)) return *status;
  auto& options = std::get<BenchOptions>(parsed);

  struct sigaction action = {};
  action.sa_handler = [](int signal) {
    interrupted_by.store(signal);
    interrupted.store(true);
  };
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second one ends at once
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);  // a failure to write tells it

  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < options.connections; ++i) {
    channels.push_back(Connect(options));
    if (!channels.back()->WaitForConnected(std::chrono::system_clock::now() +
                                           std::chrono::seconds(5))) {
      std::cerr << "llava-bench: no gateway answers at " << options.gateway << ": is it running?\n";
      return 1;
    }
  }
  const Samples samples = RunLoad(channels, options.load, interrupted, Print);
  if (options.json == "-") {
    std::cout << Json(samples, options.load) << '\n';
  } else {
    std::cout << Table(samples, options.load);
  }
  if (!std::cout.flush()) {
    std::cerr << "llava-bench: standard output does not take the results\n";
    return 1;
  }
  if (!options.json.empty() && options.json != "-") {
    std::ofstream file(options.json);
    file << Json(samples, options.load) << '\n';
    if (!file.flush()) {
      std::cerr << "llava-bench: cannot write " << options.json << '\n';
      return 1;
    }
  }
  if (interrupted.load()) return 128 + interrupted_by.load();
  return samples.turns.empty() ? 1 : 0;
}

}  // namespace
}  // namespace llava::bench

int main(int argc, char** argv) { return llava::bench::Main(argc, argv); }
