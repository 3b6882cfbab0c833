#include "client/access_flags.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <fstream>
#include <iterator>

namespace llava {

std::string ReadFlagFile(const std::string& flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file || text.empty()) {
    throw CLI::ValidationError(flag, path + " cannot be read, or is empty");
  }
  return text;
}

namespace {

// LLAVA_API_KEY is what all our clients read; a file comes before it.
std::string ReadApiKey(const std::string& path) {
  const char* given = std::getenv("LLAVA_API_KEY");
  std::string key =
      path.empty() ? (given != nullptr ? given : "") : ReadFlagFile("--api-key-file", path);
  key.erase(key.find_last_not_of(" \t\r\n") + 1);
  for (const char c : key) {
    if (c < '!' || c > '~') throw CLI::ValidationError("API key", "is not one printable word");
  }
  return key;
}

}  // namespace

void AccessFlags::Declare(CLI::App& app, const std::function<void(CLI::Option*)>& declared) {
  declared(app.add_option("--api-key-file", api_key_,
                          "File with the API key (default: the environment's LLAVA_API_KEY)")
               ->type_name("PATH"));
  declared(app.add_flag("--tls", tls_, "Encrypted connection; the others of --tls imply it"));
  declared(app.add_option("--tls-ca", roots_,
                          "Who may have signed the gateway's certificate (default: this machine's)")
               ->type_name("PATH"));
  declared(app.add_option("--tls-cert", certificate_, "Our certificate, if it asks for one")
               ->type_name("PATH"));
  declared(app.add_option("--tls-key", key_, "Key of our certificate")->type_name("PATH"));
}

AccessFlags::Access AccessFlags::Read() const {
  Access access{ReadApiKey(api_key_), std::nullopt};
  if (!tls_ && roots_.empty() && certificate_.empty() && key_.empty()) return access;
  if (certificate_.empty() != key_.empty()) {
    throw CLI::ValidationError("--tls-cert and --tls-key", "belong together");
  }
  access.tls.emplace();
  if (!roots_.empty()) access.tls->roots = ReadFlagFile("--tls-ca", roots_);
  if (certificate_.empty()) return access;
  access.tls->certificate = ReadFlagFile("--tls-cert", certificate_);
  access.tls->key = ReadFlagFile("--tls-key", key_);
  return access;
}

}  // namespace llava
