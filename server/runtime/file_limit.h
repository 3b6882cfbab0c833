#pragma once

// How many files and connections a process may have open.

#include <cstdint>

namespace llava {

// Raises the limit of open files to what the system allows this process. Returns what it is now.
uint64_t RaiseFileLimit();

// So many of those connections of strangers may take; the rest is for the process's own files and
// the connections that it makes.
int ConnectionsWithin(uint64_t files);

// Of ConnectionsWithin, where two kinds share it: HTTP gets up to `http` of them, but gRPC a
// quarter at least.
struct ConnectionShares {
  int http = 0, grpc = 0;
};
ConnectionShares ShareConnections(uint64_t files, int http);

}  // namespace llava
