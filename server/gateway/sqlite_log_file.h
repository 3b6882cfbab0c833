#pragma once

namespace llava {

// Name, for sqlite3_open_v2, of a way to files that is the usual one but for the write-ahead log:
// what SQLite writes there piece by piece, two pieces a page, goes to the kernel in one, at the
// latest before it is synced or read. A write to a file costs far more than its bytes.
// A write that fails is told where it happens: by the sync of the commit, which is then taken back.
//
// Thread-safe. Other processes may use the same database in the usual way.
const char* GatheringLogVfs();

}  // namespace llava
