#include "server/runtime/tls_files.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ssl.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/runtime/logging.h"
#include "server/runtime/mutex.h"

namespace llava {
namespace {

namespace asio = boost::asio;
namespace ssl = boost::asio::ssl;
using boost::system::error_code;

constexpr std::chrono::seconds kLook{1};

absl::Status Bad(const std::string& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Bad(path, absl::StrCat("cannot be read: ", std::strerror(errno)));
  std::ostringstream bytes;
  bytes << file.rdbuf();  // nothing from a folder
  if (bytes.view().empty()) return Bad(path, "is empty, or no file");
  return std::move(bytes).str();
}

std::string Signature(const TlsFiles& files) {
  std::string signature;
  for (const std::string* path : {&files.certificate, &files.key, &files.authorities}) {
    struct stat info;
    if (path->empty() || stat(path->c_str(), &info) != 0) continue;
    absl::StrAppend(&signature, info.st_ino, " ", info.st_size);
    // Whoever copies files may set when they were modified.
    for (const timespec& time : {info.st_mtim, info.st_ctim}) {
      absl::StrAppend(&signature, " ", time.tv_sec, ".", time.tv_nsec);
    }
    signature += "\n";
  }
  return signature;
}

struct Contents {
  std::string certificate, key, authorities;  // PEM; empty where no file is named
  std::time_t expires = 0;                    // of `certificate`
  std::shared_ptr<TlsContext> context;        // of a server with them
};

// The first of a chain.
std::time_t Expiry(const std::string& pem) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bytes(
      BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free);
  std::time_t first = std::numeric_limits<std::time_t>::max();
  while (X509* each = PEM_read_bio_X509(bytes.get(), nullptr, nullptr, nullptr)) {
    std::tm end{};
    if (ASN1_TIME_to_tm(X509_get0_notAfter(each), &end) == 1) first = std::min(first, timegm(&end));
    X509_free(each);
  }
  ERR_clear_error();  // of the end of the file
  return first;
}

absl::StatusOr<Contents> Read(const TlsFiles& files) {
  Contents contents;
  for (const auto& [path, bytes] :
       {std::pair(&files.certificate, &contents.certificate), std::pair(&files.key, &contents.key),
        std::pair(&files.authorities, &contents.authorities)}) {
    if (path->empty()) continue;
    auto read = ReadPem(*path);
    if (!read.ok()) return read.status();
    *bytes = *std::move(read);
  }
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  // Sessions outlive a change of certificates; each connection shall show its own.
  SSL_CTX_set_session_cache_mode(context->native_handle(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context->native_handle(), SSL_OP_NO_TICKET);
  error_code error;
  if (!files.certificate.empty()) {
    context->use_certificate_chain(asio::buffer(contents.certificate), error);
    if (error) return Bad(files.certificate, "holds no certificate in PEM form");
    contents.expires = Expiry(contents.certificate);
    context->use_private_key(asio::buffer(contents.key), ssl::context::pem, error);
    if (error) {
      return Bad(files.key, absl::StrCat("holds no private key of ", files.certificate,
                                         " in PEM form without a passphrase"));
    }
    if (SSL_CTX_check_private_key(context->native_handle()) != 1) {
      return Bad(files.key, absl::StrCat("is not the key of ", files.certificate));
    }
  }
  if (!files.authorities.empty()) {
    context->add_certificate_authority(asio::buffer(contents.authorities), error);
    if (error) return Bad(files.authorities, "holds no certificate in PEM form");
    context->set_verify_mode(ssl::verify_peer, error);
  }
  contents.context = std::move(context);
  return contents;
}

// A file in memory under a name that stays when its contents are exchanged at once.
class MemoryFile {
 public:
  // Throws std::system_error.
  MemoryFile() : file_(memfd_create("certificates", MFD_CLOEXEC)) {
    if (file_ < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
  }

  absl::Status Exchange(const std::string& bytes) {
    const int made = memfd_create("certificates", MFD_CLOEXEC);
    bool done = made >= 0;
    for (size_t written = 0; done && written < bytes.size();) {
      const ssize_t wrote = write(made, bytes.data() + written, bytes.size() - written);
      done = wrote >= 0 || errno == EINTR;
      written += static_cast<size_t>(std::max<ssize_t>(wrote, 0));
    }
    done = done && dup3(made, file_, O_CLOEXEC) >= 0;
    const int error = errno;
    if (made >= 0) close(made);
    return done ? absl::OkStatus() : absl::ErrnoToStatus(error, "a copy in memory");
  }
  std::string path() const { return absl::StrCat("/proc/self/fd/", file_); }

 private:
  const int file_;
};

// The last good contents of some files.
class Copies {
 public:
  // If they went bad since settings checked them, whatever fits comes later.
  explicit Copies(TlsFiles files) : files_(std::move(files)) { Take().IgnoreError(); }

  const TlsFiles& files() const { return files_; }
  // Key and certificate lie in one file, so that nobody reads one of them old and the other new.
  TlsFiles names() const {
    const std::string identity = files_.certificate.empty() ? "" : identity_.path();
    return {identity, identity, files_.authorities.empty() ? "" : authorities_.path()};
  }
  absl::StatusOr<std::shared_ptr<TlsContext>> context() {
    MutexLock lock(mutex_);
    return context_;
  }
  std::time_t expires() {
    MutexLock lock(mutex_);
    return expires_;
  }

  // By one thread.
  void Look() {
    // What could not be taken once may be tomorrow, without a change that shows on the files.
    if (taken_ && Signature(files_) == signature_) return;
    const absl::Status status = Take();
    const std::string fault(status.message());
    if (status.ok()) {
      LogInfo("certificates read again");
    } else if (fault != fault_) {
      LogError("new certificates are not taken; the old ones stay", {{"error", fault}});
    }
    fault_ = fault;
  }

 private:
  absl::Status Take() {
    signature_ = Signature(files_);  // before they are read: what comes later is new
    const auto contents = Read(files_);
    absl::Status status = contents.status();
    if (status.ok()) {
      status = identity_.Exchange(contents->key + "\n" + contents->certificate);
      if (status.ok()) status = authorities_.Exchange(contents->authorities);
    }
    taken_ = status.ok();
    MutexLock lock(mutex_);
    if (status.ok()) {
      context_ = contents->context;
      expires_ = contents->expires;
    } else if (!context_.ok()) {
      context_ = status;
    }
    return status;
  }

  const TlsFiles files_;
  // Of one thread at a time.
  std::string signature_;  // of the files last tried
  bool taken_ = false;     // they were good
  std::string fault_;      // last told; empty: they were good since
  MemoryFile identity_, authorities_;

  Mutex mutex_;
  absl::StatusOr<std::shared_ptr<TlsContext>> context_ LLAVA_GUARDED_BY(mutex_);
  std::time_t expires_ LLAVA_GUARDED_BY(mutex_) = 0;  // 0: none was good yet, or there is none
};

struct AllCopies {
  Mutex mutex;
  std::vector<Copies*> each LLAVA_GUARDED_BY(mutex);
};
AllCopies& All() {
  static AllCopies& all = *new AllCopies;
  return all;
}

// Looked after until the process ends.
Copies& CopiesOf(const TlsFiles& files) {
  AllCopies& all = All();
  MutexLock lock(all.mutex);
  for (Copies* copies : all.each) {
    if (copies->files() == files) return *copies;
  }
  Copies* const copies = all.each.emplace_back(new Copies(files));
  std::thread([copies] {
    for (;;) {
      std::this_thread::sleep_for(kLook);
      copies->Look();
    }
  }).detach();
  return *copies;
}

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& files) {
  return files.any() ? Read(files).status() : absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<TlsContext>> CurrentTlsContext(const TlsFiles& files) {
  return CopiesOf(files).context();
}

TlsFiles CheckedCopies(const TlsFiles& files) { return CopiesOf(files).names(); }

std::map<std::string, std::time_t> CertificateExpiries() {
  std::map<std::string, std::time_t> expiries;
  AllCopies& all = All();
  MutexLock lock(all.mutex);
  for (Copies* copies : all.each) {
    const std::time_t expires = copies->expires();
    if (expires != 0) expiries[copies->files().certificate] = expires;
  }
  return expiries;
}

}  // namespace llava
