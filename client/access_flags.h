#pragma once

#include <functional>
#include <optional>
#include <string>

#include "client/chat_client.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace llava {

// All of the file that a flag names. Throws CLI::ValidationError, naming both, if there is nothing.
std::string ReadFlagFile(const std::string& flag, const std::string& path);

// How a program gets into a gateway: --api-key-file, --tls, --tls-ca, --tls-cert, --tls-key, and
// LLAVA_API_KEY of the environment. A key is never a flag: everybody can read those.
class AccessFlags {
 public:
  struct Access {
    std::string api_key;
    std::optional<ChatClientTls> tls;  // set by any of the --tls flags
  };

  // `declared` sees each option. This object must outlive the parsing.
  void Declare(CLI::App& app, const std::function<void(CLI::Option*)>& declared);
  // After parsing. Throws CLI::ValidationError, naming the flag.
  Access Read() const;

 private:
  std::string api_key_, roots_, certificate_, key_;  // files
  bool tls_ = false;
};

}  // namespace llava
