#include "server/runtime/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include "absl/strings/str_cat.h"

namespace llava {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;

constexpr unsigned kRefreshSeconds = 2;

std::shared_ptr<FileWatcherCertificateProvider> Watch(const TlsFiles& files) {
  const TlsFiles copies = CheckedCopies(files);
  return std::make_shared<FileWatcherCertificateProvider>(copies.key, copies.certificate,
                                                          copies.authorities, kRefreshSeconds);
}

absl::Status CheckPair(const TlsFiles& files, const std::string& certificate_flag,
                       const std::string& key_flag) {
  if (files.certificate.empty() == files.key.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(certificate_flag, " and ", key_flag, " belong together; give both or none"));
}

}  // namespace

void DeclareListenerTls(Settings& settings, TlsFiles& files) {
  settings.Add("tls-cert", &files.certificate,
               "Certificate chain (PEM) of all ports; empty = no encryption");
  settings.Add("tls-key", &files.key, "Its key (PEM)");
  settings.Add("tls-client-ca", &files.authorities,
               "Let in only clients with a certificate signed by one of these (PEM)");
  settings.Check([&files] {
    auto status = CheckPair(files, "--tls-cert", "--tls-key");
    if (status.ok() && files.certificate.empty() && !files.authorities.empty()) {
      status = absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
    }
    return status.ok() ? CheckTlsFiles(files) : status;
  });
}

void DeclareBackendTls(Settings& settings, TlsFiles& files) {
  settings.Add("backend-tls-ca", &files.authorities,
               "Who signed the certificates of the services behind (PEM); empty = no encryption");
  settings.Add("backend-tls-cert", &files.certificate,
               "Our certificate (PEM), for services with --tls-client-ca");
  settings.Add("backend-tls-key", &files.key, "Its key (PEM)");
  settings.Check([&files] {
    auto status = CheckPair(files, "--backend-tls-cert", "--backend-tls-key");
    if (status.ok() && files.authorities.empty() && !files.certificate.empty()) {
      status = absl::InvalidArgumentError("--backend-tls-cert needs --backend-tls-ca");
    }
    return status.ok() ? CheckTlsFiles(files) : status;
  });
}

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureServerCredentials();
  grpc::experimental::TlsServerCredentialsOptions options(Watch(files));
  options.watch_identity_key_cert_pairs();
  if (!files.authorities.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(Watch(files));
  options.watch_root_certs();
  if (!files.certificate.empty()) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace llava
