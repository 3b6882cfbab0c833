#pragma once

// Named places where a test can make a process fail. They cost nothing, and do nothing, unless the
// build says LLAVA_FAILPOINTS=ON.

#include <string_view>

#include "absl/status/status.h"

namespace llava {

// What the environment variable LLAVA_FAILPOINTS wants at `name`: a list, separated by ";", of
//
//   <name>=error[@N]       INTERNAL
//   <name>=kill[@N]        SIGKILL for this process
//   <name>=sleep:MS[@N]    a wait, then OK
//
// each at the N-th time only (from 1), or every time. Thread-safe. A rule that makes no sense ends
// the process: a test must not pass because of a slip of the pen.
absl::Status HitFailpoint(std::string_view name);

#ifdef LLAVA_FAILPOINTS
#define LLAVA_FAILPOINT(name) ::llava::HitFailpoint(name)
#else
#define LLAVA_FAILPOINT(name) ::absl::OkStatus()
#endif

}  // namespace llava
