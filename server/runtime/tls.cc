#include "server/runtime/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/stat.h>

#include <boost/asio/ssl.hpp>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

namespace ssl = boost::asio::ssl;
using boost::system::error_code;
using grpc::experimental::FileWatcherCertificateProvider;

constexpr unsigned kRefreshSeconds = 2;

absl::Status Bad(const std::string& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

absl::Status CheckReadable(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return Bad(path, absl::StrCat("cannot be read: ", std::strerror(errno)));
  char byte;
  const bool empty = std::fread(&byte, 1, 1, file) != 1;
  std::fclose(file);
  return empty ? Bad(path, "is empty, or no file") : absl::OkStatus();
}

// Fills a context from the files; the first thing that is wrong.
absl::Status Fill(const TlsFiles& files, ssl::context& context) {
  for (const std::string* path : {&files.certificate, &files.key, &files.authorities}) {
    if (path->empty()) continue;
    if (auto status = CheckReadable(*path); !status.ok()) return status;
  }
  error_code error;
  if (!files.certificate.empty()) {
    context.use_certificate_chain_file(files.certificate, error);
    if (error) return Bad(files.certificate, "holds no certificate in PEM form");
    context.use_private_key_file(files.key, ssl::context::pem, error);
    if (error) {
      return Bad(files.key, absl::StrCat("holds no private key of ", files.certificate,
                                         " in PEM form without a passphrase"));
    }
    if (SSL_CTX_check_private_key(context.native_handle()) != 1) {
      return Bad(files.key, absl::StrCat("is not the key of ", files.certificate));
    }
  }
  if (!files.authorities.empty()) {
    context.load_verify_file(files.authorities, error);
    if (error) return Bad(files.authorities, "holds no certificate in PEM form");
    context.set_verify_mode(ssl::verify_peer, error);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ssl::context>> MakeContext(const TlsFiles& files) {
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  // Sessions outlive a change of certificates; each connection shall show its own.
  SSL_CTX_set_session_cache_mode(context->native_handle(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context->native_handle(), SSL_OP_NO_TICKET);
  if (auto status = Fill(files, *context); !status.ok()) return status;
  return context;
}

std::string SignatureOf(const TlsFiles& files) {
  std::string signature;
  for (const std::string* path : {&files.certificate, &files.key, &files.authorities}) {
    struct stat info;
    if (path->empty() || stat(path->c_str(), &info) != 0) continue;
    absl::StrAppend(&signature, info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec, ".",
                    info.st_mtim.tv_nsec, "\n");
  }
  return signature;
}

std::shared_ptr<FileWatcherCertificateProvider> Watch(const TlsFiles& files) {
  return std::make_shared<FileWatcherCertificateProvider>(files.key, files.certificate,
                                                          files.authorities, kRefreshSeconds);
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
  return MakeContext(files).status();
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
  auto context = MakeContext(files);
  if (!context.ok()) return context.status();
  MutexLock lock(contexts->mutex_);
  contexts->context_ = *std::move(context);
  contexts->signature_ = SignatureOf(files);
  contexts->looked_ = CondVar::Clock::now();
  return contexts;
}

std::shared_ptr<TlsContext> TlsContexts::Current() {
  MutexLock lock(mutex_);
  const auto now = CondVar::Clock::now();
  if (now - looked_ < std::chrono::seconds(kRefreshSeconds)) return context_;
  looked_ = now;
  std::string signature = SignatureOf(files_);
  if (signature == signature_) return context_;
  signature_ = std::move(signature);
  if (auto context = MakeContext(files_); context.ok()) {
    context_ = *std::move(context);
    LogInfo("certificates read again");
  } else {
    LogError("new certificates are bad; the old ones stay",
             {{"error", std::string(context.status().message())}});
  }
  return context_;
}

}  // namespace llava
