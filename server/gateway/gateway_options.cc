#include "server/gateway/gateway_options.h"

#include <charconv>
#include <cstdlib>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace llava {
namespace {

absl::Status CheckAddress(absl::string_view flag, absl::string_view address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon != absl::string_view::npos && colon > 0) {
    const char* end = address.data() + address.size();
    const auto parsed = std::from_chars(address.data() + colon + 1, end, port);
    if (parsed.ec != std::errc() || parsed.ptr != end) port = 0;
  }
  if (port >= 1 && port <= 65535) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, " ", address, " is not HOST:PORT, e.g. 127.0.0.1:8011"));
}

}  // namespace

std::string GatewayOptions::DefaultDataDir() {
  const char* data = std::getenv("XDG_DATA_HOME");
  if (data != nullptr && *data != '\0') return absl::StrCat(data, "/llava-serving/gateway");
  const char* home = std::getenv("HOME");
  return absl::StrCat(home != nullptr ? home : ".", "/.local/share/llava-serving/gateway");
}

void GatewayOptions::Declare(Settings& settings) {
  settings.Group("Services behind");
  settings.Add("vision", &vision, "HOST:PORT of llava-vision");
  settings.Add("llm", &llm, "HOST:PORT of llava-llm");
  DeclareBackendTls(settings, backend_tls);
  settings.Add("default-model", &default_model,
               "Model of requests that name none; empty = the first that llava-llm lists");
  settings.Group("Sessions");
  settings.Add("data-dir", &data_dir, "Folder of sessions and pictures; made if missing");
  settings.Group("HTTP");
  settings.Add("http-port", &http_port,
               "Port of the OpenAI API and the chat page; 0 = any, -1 = none", -1, 65535);
  settings.Add("http-threads", &http_threads, "Threads that serve HTTP", 1, 64);
  settings.Group("Access");
  settings.Add("keys-file", &keys_file,
               "File of API keys (see llava-gateway keys --help); read again when it changes");
  settings.Add("metrics-open", &metrics_open,
               "With keys: /metrics needs none, wherever it listens");
  settings.Group("Limits");
  gate.Declare(settings);
  settings.AddBytes("max-image-bytes", &max_image_bytes, "Largest picture file");
  settings.Add("max-image-pixels", &max_image_pixels, "Largest picture, width times height", 1,
               std::numeric_limits<int>::max());
  settings.Add("max-images-per-turn", &max_images_per_turn, "Pictures in one message", 0, 1000);
  settings.AddBytes("max-turn-bytes", &max_turn_bytes, "Text and pictures of one request");
  settings.Add("request-timeout", &request_timeout, "Longest time for one answer");
  settings.Check([this] { return Check(); });
}

absl::Status GatewayOptions::Check() const {
  if (auto status = CheckAddress("vision", vision); !status.ok()) return status;
  if (auto status = CheckAddress("llm", llm); !status.ok()) return status;
  if (data_dir.empty()) return absl::InvalidArgumentError("--data-dir is empty; name a folder");
  if (max_image_bytes == 0 || max_turn_bytes == 0) {
    return absl::InvalidArgumentError("--max-image-bytes and --max-turn-bytes must be above 0");
  }
  if (request_timeout.count() <= 0) {
    return absl::InvalidArgumentError("--request-timeout must be above 0");
  }
  return absl::OkStatus();
}

}  // namespace llava
