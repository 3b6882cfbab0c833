#include "server/runtime/tls_files.h"

#include <fcntl.h>
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

bool operator==(const TlsFiles& a, const TlsFiles& b) {
  return a.certificate == b.certificate && a.key == b.key && a.authorities == b.authorities;
}

// A file in memory under a name that stays when its contents are exchanged at once.
class MemoryFile {
 public:
  // Throws std::system_error.
  explicit MemoryFile(const std::string& bytes) : file_(Make(bytes)) {}

  void Exchange(const std::string& bytes) {
    const int made = Make(bytes);
    const bool exchanged = dup3(made, file_, O_CLOEXEC) >= 0;
    const int error = errno;
    close(made);
    if (!exchanged) throw std::system_error(error, std::generic_category(), "dup3");
  }
  std::string path() const { return absl::StrCat("/proc/self/fd/", file_); }

 private:
  static int Make(const std::string& bytes) {
    const int file = memfd_create("certificates", MFD_CLOEXEC);
    if (file < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t wrote = write(file, bytes.data() + done, bytes.size() - done);
      if (wrote < 0 && errno != EINTR) {
        const int error = errno;
        close(file);
        throw std::system_error(error, std::generic_category(), "write");
      }
      done += static_cast<size_t>(std::max<ssize_t>(wrote, 0));
    }
    return file;
  }

  const int file_;
};

// Key and certificate lie in one file, so that nobody reads one of them old and the other new.
class Copies {
 public:
  explicit Copies(const TlsFiles& files)
      : files_(files),
        signature_(TlsSignature(files)),
        contents_(Read(files)),
        identity_(contents_.key + "\n" + contents_.certificate),
        authorities_(contents_.authorities) {}

  const TlsFiles& files() const { return files_; }
  TlsFiles names() const {
    const std::string identity = files_.certificate.empty() ? "" : identity_.path();
    return {identity, identity, files_.authorities.empty() ? "" : authorities_.path()};
  }

  void Look() {
    std::string signature = TlsSignature(files_);
    if (signature == signature_) return;
    signature_ = std::move(signature);
    auto contents = ReadTlsFiles(files_);
    const absl::Status status =
        contents.ok() ? MakeTlsContext(files_, *contents).status() : contents.status();
    if (!status.ok()) {
      LogError("new certificates are bad; the old ones stay",
               {{"error", std::string(status.message())}});
      return;
    }
    try {
      if (contents->key != contents_.key || contents->certificate != contents_.certificate) {
        identity_.Exchange(contents->key + "\n" + contents->certificate);
      }
      if (contents->authorities != contents_.authorities) {
        authorities_.Exchange(contents->authorities);
      }
    } catch (const std::system_error& error) {
      signature_.clear();
      LogError("new certificates cannot be taken yet", {{"error", error.what()}});
      return;
    }
    contents_ = *std::move(contents);
    LogInfo("certificates read again");
  }

 private:
  // Settings have checked them; if they went bad since then, whatever fits comes later.
  static TlsContents Read(const TlsFiles& files) {
    auto contents = ReadTlsFiles(files);
    return contents.ok() ? *std::move(contents) : TlsContents{};
  }

  const TlsFiles files_;
  std::string signature_;
  TlsContents contents_;
  MemoryFile identity_, authorities_;
};

class Keeper {
 public:
  TlsFiles Names(const TlsFiles& files) {
    MutexLock lock(mutex_);
    if (all_.empty()) std::thread([this] { Watch(); }).detach();
    for (const auto& copies : all_) {
      if (copies->files() == files) return copies->names();
    }
    all_.push_back(std::make_unique<Copies>(files));
    return all_.back()->names();
  }

 private:
  void Watch() {
    for (;;) {
      std::this_thread::sleep_for(kLook);
      MutexLock lock(mutex_);
      for (const auto& copies : all_) copies->Look();
    }
  }

  Mutex mutex_;
  std::vector<std::unique_ptr<Copies>> all_ LLAVA_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<TlsContents> ReadTlsFiles(const TlsFiles& files) {
  TlsContents contents;
  for (const auto& [path, bytes] :
       {std::pair(&files.certificate, &contents.certificate), std::pair(&files.key, &contents.key),
        std::pair(&files.authorities, &contents.authorities)}) {
    if (path->empty()) continue;
    auto read = ReadPem(*path);
    if (!read.ok()) return read.status();
    *bytes = *std::move(read);
  }
  return contents;
}

absl::StatusOr<std::shared_ptr<TlsContext>> MakeTlsContext(const TlsFiles& files,
                                                           const TlsContents& contents) {
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  // Sessions outlive a change of certificates; each connection shall show its own.
  SSL_CTX_set_session_cache_mode(context->native_handle(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context->native_handle(), SSL_OP_NO_TICKET);
  error_code error;
  if (!files.certificate.empty()) {
    context->use_certificate_chain(asio::buffer(contents.certificate), error);
    if (error) return Bad(files.certificate, "holds no certificate in PEM form");
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
  return context;
}

absl::StatusOr<std::shared_ptr<TlsContext>> MakeTlsContext(const TlsFiles& files) {
  const auto contents = ReadTlsFiles(files);
  if (!contents.ok()) return contents.status();
  return MakeTlsContext(files, *contents);
}

std::string TlsSignature(const TlsFiles& files) {
  std::string signature;
  for (const std::string* path : {&files.certificate, &files.key, &files.authorities}) {
    struct stat info;
    if (path->empty() || stat(path->c_str(), &info) != 0) continue;
    absl::StrAppend(&signature, info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec, ".",
                    info.st_mtim.tv_nsec, "\n");
  }
  return signature;
}

TlsFiles CheckedCopies(const TlsFiles& files) {
  static Keeper& keeper = *new Keeper;  // its thread never ends
  return keeper.Names(files);
}

}  // namespace llava
