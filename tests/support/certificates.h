#pragma once

// Certificates for tests, made by the openssl program.

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace llava {

// Authorities and certificates signed by them, as PEM files in a folder.
class TestCertificates {
 public:
  explicit TestCertificates(std::string folder) : folder_(std::move(folder)) {}

  // Makes <name>.pem and <name>.key: one that signs others.
  void Authority(const std::string& name) const {
    Run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "
        "/CN=" +
        name + " -keyout " + Path(name, ".key") + " -out " + Path(name, ".pem"));
  }
  // The same, signed by `authority`, for localhost and 127.0.0.1.
  void Leaf(const std::string& name, const std::string& authority, int days = 2) const {
    Run("openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=" + name +
        " -keyout " + Path(name, ".key") + " -out " + Path(name, ".csr"));
    Run("printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > " + Path(name, ".ext"));
    Run("openssl x509 -req -days " + std::to_string(days) + " -in " + Path(name, ".csr") + " -CA " +
        Path(authority, ".pem") + " -CAkey " + Path(authority, ".key") +
        " -CAcreateserial -extfile " + Path(name, ".ext") + " -out " + Path(name, ".pem"));
  }
  std::string Certificate(const std::string& name) const { return Path(name, ".pem"); }
  std::string Key(const std::string& name) const { return Path(name, ".key"); }

 private:
  std::string Path(const std::string& name, const char* ending) const {
    return folder_ + "/" + name + ending;
  }
  static void Run(const std::string& command) {
    if (std::system((command + " 2>/dev/null").c_str()) != 0) {
      throw std::runtime_error("failed: " + command);
    }
  }

  const std::string folder_;
};

}  // namespace llava
