#pragma once

// Certificates and keys in PEM files: checked before anybody uses them, read again when they
// change.

#include <ctime>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace boost::asio::ssl {
class context;
}

namespace llava {

using TlsContext = boost::asio::ssl::context;

// Paths. All empty: no encryption.
struct TlsFiles {
  std::string certificate;  // ours, with those between it and its root
  std::string key;          // of our certificate
  std::string authorities;  // who may have signed the other side's certificate

  bool any() const { return !certificate.empty() || !key.empty() || !authorities.empty(); }
  bool operator==(const TlsFiles&) const = default;
};

// INVALID_ARGUMENT naming the file and what is wrong: not readable, no PEM, a key that does not
// belong to its certificate.
absl::Status CheckTlsFiles(const TlsFiles& files);

// What follows is of the files as they were within the last seconds, or of the last good ones while
// they are bad, which is logged. Files are read by the first call for them, and then on a thread
// that never ends. Thread-safe.

// For our HTTP server. A client certificate is verified if it is shown; HttpServer knows where one
// is needed. An error if the files never were good.
absl::StatusOr<std::shared_ptr<TlsContext>> CurrentTlsContext(const TlsFiles& files);
// For gRPC, which reads files by itself, and whose listeners and channels refuse everybody while it
// finds something bad there: names of copies in memory that always fit together.
TlsFiles CheckedCopies(const TlsFiles& files);
// When the certificates of all files that were asked for expire, by file; of those between
// one and its root the soonest.
std::map<std::string, std::time_t> CertificateExpiries();

}  // namespace llava
