#pragma once

// How many files and connections a process may have open.

#include <cstdint>

namespace llava {

// Raises the limit of open files to what the system allows this process. Returns what it is now.
uint64_t RaiseFileLimit();

// So many of those connections of strangers may take; the rest is for the process's own files and
// its other connections.
int ConnectionsWithin(uint64_t files);

}  // namespace llava
