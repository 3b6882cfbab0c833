#pragma once

// Certificates of listeners and of calls to other services: PEM files, read again when they change.

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/runtime/mutex.h"
#include "server/runtime/settings.h"

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
};

// --tls-cert, --tls-key and --tls-client-ca of a listener, checked when all settings are read.
void DeclareListenerTls(Settings& settings, TlsFiles& files);
// --backend-tls-ca, --backend-tls-cert and --backend-tls-key of calls to other services.
void DeclareBackendTls(Settings& settings, TlsFiles& files);

// INVALID_ARGUMENT naming the file and what is wrong: not readable, no PEM, a key that does not
// belong to its certificate.
absl::Status CheckTlsFiles(const TlsFiles& files);

// With `authorities` a client must show a certificate. Certificates are read again within seconds
// of a change; a bad new file leaves the old one in use.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsFiles& files);
// The name in the address must stand in the server's certificate.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsFiles& files);

// The same for our HTTP server. A client certificate is verified if it is shown; HttpServer knows
// where one is needed. Thread-safe.
class TlsContexts {
 public:
  // Reads the files.
  static absl::StatusOr<std::unique_ptr<TlsContexts>> Open(const TlsFiles& files);

  // That of the files as they are now; the last good one while they are bad.
  std::shared_ptr<TlsContext> Current();

 private:
  explicit TlsContexts(TlsFiles files) : files_(std::move(files)) {}

  const TlsFiles files_;
  Mutex mutex_;
  std::shared_ptr<TlsContext> context_ LLAVA_GUARDED_BY(mutex_);
  std::string signature_ LLAVA_GUARDED_BY(mutex_);  // of the files last tried
  CondVar::Clock::time_point looked_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace llava
