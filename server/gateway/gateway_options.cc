#include "server/gateway/gateway_options.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/gateway/backend_pool.h"
#include "server/gateway/keys_file.h"
#include "server/gateway/model_choice.h"

namespace llava {
namespace {

absl::Status CheckAddresses(absl::string_view flag, const std::string& addresses) {
  const auto status = ParseBackendAddresses(addresses).status();
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " ", status.message()));
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
  settings.Add("vision", &vision,
               "Where llava-vision is: HOST:PORT, or dns:///NAME:PORT for each address of a name; "
               "several separated by commas");
  settings.Add("llm", &llm, "Where llava-llm is, likewise");
  DeclareBackendTls(settings, backend_tls);
  settings.Add("default-model", &default_model,
               "Model of requests that name none; empty = the first by name");
  settings.Group("Rollouts");
  settings.Add("canary-share", &canary_share,
               "Share of the sessions that the version labelled canary gets", 0, 1);
  rollout.Declare(settings);
  settings.Group("Sessions");
  settings.Add("data-dir", &data_dir, "Folder of sessions and pictures; made if missing");
  settings.Add("session-ttl", &session_ttl,
               "Delete sessions unused for so long, unless they say otherwise; 0s = never");
  settings.Add("resume-grace", &resume_grace, "Go on with an answer that nobody reads for so long");
  settings.Add("continue-timeout", &continue_timeout,
               "Longest wait of a begun answer for a language worker that goes on with it");
  settings.Group("HTTP");
  settings.Add("http-port", &http_port,
               "Port of the OpenAI API and the chat page; 0 = any, -1 = none", -1, 65535);
  settings.Add("http-threads", &http_threads, "Threads that serve HTTP", 1, 64);
  settings.Add("http-connections", &http_limits.connections, "HTTP connections at a time", 1,
               1'000'000);
  settings.Add("http-body-timeout", &http_limits.body_timeout,
               "Longest time for the body of an HTTP request to come");
  settings.AddBytes("http-bodies-bytes", &http_limits.bodies_bytes,
                    "Bodies of HTTP requests that are being received, all together");
  settings.Group("Access");
  settings.Add("keys-file", &keys_file,
               "File of API keys (see llava-gateway keys --help); read again when it changes");
  settings.Add("metrics-open", &metrics_open,
               "With keys: /metrics of --metrics-port needs none, wherever it listens");
  settings.Group("Limits");
  gate.Declare(settings);
  settings.Add("max-turns-per-session", &max_turns_per_session, "Turns of a session; 0 = any", 0,
               std::numeric_limits<int>::max());
  settings.Add("max-images-per-session", &max_images_per_session, "Pictures of a session; 0 = any",
               0, std::numeric_limits<int>::max());
  settings.AddBytes("max-image-bytes", &max_image_bytes, "Largest picture file");
  settings.Add("max-image-pixels", &max_image_pixels, "Largest picture, width times height", 1,
               std::numeric_limits<int>::max());
  settings.Add("max-images-per-turn", &max_images_per_turn, "Pictures in one message", 0, 1000);
  settings.AddBytes("max-turn-bytes", &max_turn_bytes, "Text and pictures of one request");
  settings.AddBytes("request-bytes", &request_bytes,
                    "Uploads and questions that are held in memory, all together");
  picture_urls.Declare(settings);
  settings.Add("request-timeout", &request_timeout, "Longest time for one answer");
  settings.Group("Instead of serving");
  settings.Add("backup", &backup_to, "Copy sessions and pictures to this new folder, and end");
  settings.Add("restore", &restore_from, "Make --data-dir from such a copy, and end");
  settings.Check([this] { return Check(); });
}

absl::Status GatewayOptions::Check() const {
  if (auto status = CheckAddresses("vision", vision); !status.ok()) return status;
  if (auto status = CheckAddresses("llm", llm); !status.ok()) return status;
  if (auto status = ParseModelChoice(default_model).status(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--default-model: ", status.message()));
  }
  if (auto status = rollout.Check(); !status.ok()) return status;
  if (data_dir.empty()) return absl::InvalidArgumentError("--data-dir is empty; name a folder");
  if (max_image_bytes == 0 || max_turn_bytes == 0) {
    return absl::InvalidArgumentError("--max-image-bytes and --max-turn-bytes must be above 0");
  }
  if (request_bytes < std::max(max_image_bytes, max_turn_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--request-bytes ", request_bytes, " has no room for one picture or question of ",
        std::max(max_image_bytes, max_turn_bytes), " bytes (--max-image-bytes, --max-turn-bytes)"));
  }
  if (http_port >= 0 && http_limits.bodies_bytes < max_http_body_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--http-bodies-bytes ", http_limits.bodies_bytes, " has no room for one request of ",
        max_http_body_bytes(), " bytes (--max-turn-bytes in base64, and 1 MiB)"));
  }
  if (http_limits.body_timeout.count() <= 0) {
    return absl::InvalidArgumentError("--http-body-timeout must be above 0");
  }
  if (auto status = picture_urls.Check(); !status.ok()) return status;
  if (!backup_to.empty() && !restore_from.empty()) {
    return absl::InvalidArgumentError("--backup and --restore: one at a time");
  }
  if (request_timeout.count() <= 0) {
    return absl::InvalidArgumentError("--request-timeout must be above 0");
  }
  if (keys_file.empty() || copies_store()) return absl::OkStatus();
  // A pipe has its bytes once, for the start.
  std::error_code error;
  if (std::filesystem::exists(keys_file, error) &&
      !std::filesystem::is_regular_file(keys_file, error)) {
    return absl::OkStatus();
  }
  const auto keys = ReadApiKeys(keys_file);
  return keys.ok() ? absl::OkStatus() : absl::InvalidArgumentError(keys.status().message());
}

}  // namespace llava
