#pragma once

// Tables of the session store and how older files are brought up to date.

#include <cstdint>

#include "absl/status/status.h"
#include "server/gateway/sqlite.h"

namespace llava {

// Runs the migrations that the file lacks, each in a transaction, up to `newest` (0: all).
// FAILED_PRECONDITION: the file was written by a newer gateway.
absl::Status MigrateStore(SqlDatabase& database, int64_t newest = 0);

}  // namespace llava
