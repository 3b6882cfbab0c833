#pragma once

namespace llava {

// Of a service process, beside 0 (orderly end) and 1 (other faults).
enum ExitCode {
  kExitUsage = 2,  // also of Settings::Parse
  kExitPortInUse = 3,
  kExitModelMissing = 4,
  kExitDeviceMissing = 5,
  kExitNoMemory = 6,
  kExitDeviceLost = 7  // a new process may get it back
};

}  // namespace llava
