#pragma once

// The gRPC port of a process: takes connections and hands them to gRPC.

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <prometheus/counter.h>
#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace llava {

// gRPC's own listener (1.51) never takes a connection again once accept has failed, say for want of
// a descriptor: the port is dead from then on, while the process lives. This one tries it again and
// again, and closes connections beyond a bound at once.
//
// Order of calls: Bind, AddTo, the builder's BuildAndStart, Start, Stop.
class GrpcListener {
 public:
  struct Options {
    std::string host = "127.0.0.1";  // an IP address (IPv6: in brackets or without), or localhost
    int port = 0;                    // 0 = any free one
    int connections = 1024;          // at a time
    prometheus::Counter* refused = nullptr;  // those beyond; outlives the listener
  };

  // Clients may connect from now on, and wait. An address that stands for all (0.0.0.0, ::) takes
  // IPv4 and IPv6; localhost, too. INVALID_ARGUMENT: the host is none; UNAVAILABLE: the port cannot
  // be had.
  static absl::StatusOr<std::unique_ptr<GrpcListener>> Bind(const Options& options);
  ~GrpcListener();
  GrpcListener(const GrpcListener&) = delete;
  GrpcListener& operator=(const GrpcListener&) = delete;

  void AddTo(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> credentials);
  void Start();
  // Closes the port; before the server shuts down.
  void Stop();
  int port() const { return port_; }

 private:
  explicit GrpcListener(const Options& options);
  // Adds a socket to `sockets_`.
  absl::Status Listen(const std::string& address);
  void Loop();
  // Those that wait at a socket. False: it cannot be accepted now.
  bool AcceptAll(int socket);
  bool IsFull();

  const Options options_;
  int port_ = 0;
  const int stop_;  // readable when the thread shall end
  std::vector<int> sockets_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  // Of the thread. gRPC tells nobody when it closes a connection: these descriptors are open for as
  // long as they stand for the same files.
  std::unordered_map<int, ino_t> open_;
  std::chrono::steady_clock::time_point counted_;  // when `open_` was last looked through
  std::chrono::steady_clock::time_point told_fault_, told_refusal_;  // in the log
  std::thread thread_;
};

}  // namespace llava
