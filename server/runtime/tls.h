#pragma once

// Certificates of listeners and of calls to other services.

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "server/runtime/settings.h"
#include "server/runtime/tls_files.h"

namespace llava {

// --tls-cert, --tls-key and --tls-client-ca of a listener, checked when all settings are read.
void DeclareListenerTls(Settings& settings, TlsFiles& files);
// --backend-tls-ca, --backend-tls-cert and --backend-tls-key of calls to other services.
void DeclareBackendTls(Settings& settings, TlsFiles& files);

// With `authorities` a client must show a certificate. Certificates are read again within seconds
// of a change; a bad new file leaves the old one in use.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsFiles& files);
// The name in the address must stand in the server's certificate.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsFiles& files);

}  // namespace llava
