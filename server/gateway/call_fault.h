#pragma once

// Whose fault it was that a call failed, and the failure that is nobody's.

#include "absl/status/status.h"

namespace llava {

// A failure that only the caller can mend though its code does not tell: its own deadline, what it
// did not send or read in time. The caller gets it with an ErrorInfo (reason CALLER).
absl::Status CallersFault(absl::Status status);

// UNAVAILABLE with RetryInfo: the process ends.
absl::Status ShuttingDown();

// INTERNAL, DATA_LOSS, UNKNOWN: something is broken, here or behind us.
bool IsBroken(const absl::Status& status);

// Codes that a caller cannot mend, unless marked by CallersFault.
bool IsFault(const absl::Status& status);

}  // namespace llava
