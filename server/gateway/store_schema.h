#pragma once

// Tables of the session store and how older files are brought up to date.

#include "absl/status/status.h"
#include "server/gateway/sqlite.h"

namespace llava {

// Runs the migrations that the file lacks, each in a transaction. FAILED_PRECONDITION: the file was
// written by a newer gateway.
absl::Status MigrateStore(SqlDatabase& database);

}  // namespace llava
