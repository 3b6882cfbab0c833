#include "server/runtime/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/logging.h"
#include "server/runtime/tls_files.h"

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

absl::Status CheckTlsFiles(const TlsFiles& files) {
  if (!files.any()) return absl::OkStatus();
  return MakeTlsContext(files).status();
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

absl::StatusOr<std::unique_ptr<TlsContexts>> TlsContexts::Open(const TlsFiles& files) {
  std::unique_ptr<TlsContexts> contexts(new TlsContexts(files));
  std::string signature = TlsSignature(files);  // before they are read: what comes later is new
  auto context = MakeTlsContext(files);
  if (!context.ok()) return context.status();
  MutexLock lock(contexts->mutex_);
  contexts->context_ = *std::move(context);
  contexts->signature_ = std::move(signature);
  contexts->looked_ = CondVar::Clock::now();
  return contexts;
}

std::shared_ptr<TlsContext> TlsContexts::Current() {
  MutexLock lock(mutex_);
  const auto now = CondVar::Clock::now();
  if (now - looked_ < std::chrono::seconds(kRefreshSeconds)) return context_;
  looked_ = now;
  std::string signature = TlsSignature(files_);
  if (signature == signature_) return context_;
  signature_ = std::move(signature);
  if (auto context = MakeTlsContext(files_); context.ok()) {
    context_ = *std::move(context);
    LogInfo("certificates read again");
  } else {
    LogError("new certificates are bad; the old ones stay",
             {{"error", std::string(context.status().message())}});
  }
  return context_;
}

}  // namespace llava
