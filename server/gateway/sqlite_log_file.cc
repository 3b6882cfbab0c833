#include "server/gateway/sqlite_log_file.h"

#include <sqlite3.h>

#include <cstddef>
#include <new>
#include <string>
#include <type_traits>

namespace llava {
namespace {

// The largest page of SQLite: the usual file need not take more in one write.
constexpr size_t kMostBytes = 64 << 10;

// In memory that SQLite allocates, with the usual file right behind it.
struct LogFile {
  sqlite3_file base;        // first: all that SQLite knows of it
  std::string bytes;        // not written yet; never grows beyond what was reserved
  sqlite3_int64 place = 0;  // of `bytes` in the file
};
static_assert(std::is_standard_layout_v<LogFile> && sizeof(LogFile) % 8 == 0);

LogFile& LogOf(sqlite3_file* file) { return *reinterpret_cast<LogFile*>(file); }
sqlite3_file* Usual(sqlite3_file* file) {
  return reinterpret_cast<sqlite3_file*>(reinterpret_cast<LogFile*>(file) + 1);
}

int WriteUsual(sqlite3_file* file, const void* bytes, size_t size, sqlite3_int64 place) {
  sqlite3_file* usual = Usual(file);
  return usual->pMethods->xWrite(usual, bytes, static_cast<int>(size), place);
}

int Flush(sqlite3_file* file) {
  LogFile& log = LogOf(file);
  if (log.bytes.empty()) return SQLITE_OK;
  const int code = WriteUsual(file, log.bytes.data(), log.bytes.size(), log.place);
  log.bytes.clear();  // after a failure too: whoever is told takes the transaction back
  return code;
}

int Write(sqlite3_file* file, const void* bytes, int size, sqlite3_int64 place) {
  LogFile& log = LogOf(file);
  const size_t gathered = log.bytes.size();
  if (place != log.place + static_cast<sqlite3_int64>(gathered) || gathered + size > kMostBytes) {
    if (const int code = Flush(file); code != SQLITE_OK) return code;
    log.place = place;
  }
  log.bytes.append(static_cast<const char*>(bytes), size);
  return SQLITE_OK;
}

// A method that first brings the file up to date.
template <auto method, typename... Arguments>
int FlushThen(sqlite3_file* file, Arguments... arguments) {
  if (const int code = Flush(file); code != SQLITE_OK) return code;
  sqlite3_file* usual = Usual(file);
  return (usual->pMethods->*method)(usual, arguments...);
}

template <auto method, typename... Arguments>
int Forward(sqlite3_file* file, Arguments... arguments) {
  sqlite3_file* usual = Usual(file);
  return (usual->pMethods->*method)(usual, arguments...);
}

// What could not be written is of a transaction that goes on. SQLite takes all of it back after an
// I/O error; after a full disk it may take back a statement and commit the rest, hole and all.
int Read(sqlite3_file* file, void* bytes, int size, sqlite3_int64 place) {
  if (Flush(file) != SQLITE_OK) return SQLITE_IOERR_WRITE;
  return Forward<&sqlite3_io_methods::xRead>(file, bytes, size, place);
}

int Close(sqlite3_file* file) {
  const int flushed = Flush(file);
  const int closed = Forward<&sqlite3_io_methods::xClose>(file);
  LogOf(file).~LogFile();
  return flushed != SQLITE_OK ? flushed : closed;
}

constexpr sqlite3_io_methods kMethods = {
    .iVersion = 1,
    .xClose = Close,
    .xRead = Read,
    .xWrite = Write,
    .xTruncate = FlushThen<&sqlite3_io_methods::xTruncate, sqlite3_int64>,
    .xSync = FlushThen<&sqlite3_io_methods::xSync, int>,
    .xFileSize = FlushThen<&sqlite3_io_methods::xFileSize, sqlite3_int64*>,
    .xLock = Forward<&sqlite3_io_methods::xLock, int>,
    .xUnlock = Forward<&sqlite3_io_methods::xUnlock, int>,
    .xCheckReservedLock = Forward<&sqlite3_io_methods::xCheckReservedLock, int*>,
    .xFileControl = Forward<&sqlite3_io_methods::xFileControl, int, void*>,
    .xSectorSize = Forward<&sqlite3_io_methods::xSectorSize>,
    .xDeviceCharacteristics = Forward<&sqlite3_io_methods::xDeviceCharacteristics>,
    // Of later versions, for files that are shared or mapped.
    .xShmMap = nullptr,
    .xShmLock = nullptr,
    .xShmBarrier = nullptr,
    .xShmUnmap = nullptr,
    .xFetch = nullptr,
    .xUnfetch = nullptr,
};

sqlite3_vfs* UsualVfs() {
  static sqlite3_vfs* const usual = sqlite3_vfs_find(nullptr);
  return usual;
}

int Open(sqlite3_vfs*, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  sqlite3_vfs* const usual = UsualVfs();
  if ((flags & SQLITE_OPEN_WAL) == 0) return usual->xOpen(usual, name, file, flags, out_flags);
  LogFile* const log = new (file) LogFile{};
  try {
    log->bytes.reserve(kMostBytes);
  } catch (const std::bad_alloc&) {
    log->~LogFile();
    return SQLITE_NOMEM;
  }
  sqlite3_file* const inner = Usual(file);
  inner->pMethods = nullptr;
  const int code = usual->xOpen(usual, name, inner, flags, out_flags);
  if (code == SQLITE_OK) {
    log->base.pMethods = &kMethods;
    return code;
  }
  if (inner->pMethods != nullptr) inner->pMethods->xClose(inner);
  log->~LogFile();
  file->pMethods = nullptr;
  return code;
}

}  // namespace

const char* GatheringLogVfs() {
  static sqlite3_vfs* const vfs = [] {
    static sqlite3_vfs ours = *UsualVfs();
    ours.szOsFile += static_cast<int>(sizeof(LogFile));
    ours.zName = "llava-gathering-log";
    ours.xOpen = Open;
    sqlite3_vfs_register(&ours, /*makeDflt=*/0);
    return &ours;
  }();
  return vfs->zName;
}

}  // namespace llava
