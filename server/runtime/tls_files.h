#pragma once

// What the PEM files of a TlsFiles hold, checked before anybody uses it.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/runtime/tls.h"

namespace llava {

struct TlsContents {
  std::string certificate, key, authorities;  // PEM; empty where no file is named
};

// INVALID_ARGUMENT naming the file and what is wrong: not readable, empty.
absl::StatusOr<TlsContents> ReadTlsFiles(const TlsFiles& files);
// A context of a server with them. INVALID_ARGUMENT naming the file and what is wrong: no PEM, a
// key that does not belong to its certificate.
absl::StatusOr<std::shared_ptr<TlsContext>> MakeTlsContext(const TlsFiles& files,
                                                           const TlsContents& contents);
absl::StatusOr<std::shared_ptr<TlsContext>> MakeTlsContext(const TlsFiles& files);

// Another one when a file has changed.
std::string TlsSignature(const TlsFiles& files);

// Names of copies that always fit together: in memory, made anew within seconds of a change of
// `files`, unless what these hold by then is bad; then an error is logged and the copies stay.
// gRPC reads files by itself, and its listeners and channels refuse everybody while it finds
// something bad there. The copies stay until the process ends. Thread-safe.
TlsFiles CheckedCopies(const TlsFiles& files);

}  // namespace llava
