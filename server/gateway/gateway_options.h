#pragma once

// What can be set on a gateway beside the settings of every process.

#include <chrono>
#include <cstdint>
#include <string>

#include "model/image/header.h"
#include "server/gateway/picture_fetcher.h"
#include "server/gateway/rollout_guard.h"
#include "server/gateway/turn_gate.h"
#include "server/runtime/http_message.h"
#include "server/runtime/settings.h"
#include "server/runtime/tls.h"

namespace llava {

// Defaults work on a laptop with all services on one machine. Const once serving.
struct GatewayOptions {
  // HOST:PORT of the services behind.
  std::string vision = "127.0.0.1:8011";
  std::string llm = "127.0.0.1:8021";
  TlsFiles backend_tls;  // of the calls to them
  // Sessions and pictures; made if missing. One gateway at a time.
  std::string data_dir = DefaultDataDir();
  // Model of requests and sessions that name none, also NAME@LABEL or NAME@VERSION. Empty: the
  // first one the LLM service lists.
  std::string default_model;
  // OpenAI API and chat page, at the address of the other ports; 0 = a free one, -1 = none.
  int http_port = 8000;
  int http_threads = 2;
  HttpLimits http_limits;
  // API keys (docs/access.md); empty: everybody who reaches the port comes in.
  std::string keys_file;
  // /metrics needs no key on an address that strangers can reach.
  bool metrics_open = false;

  // How long an answer is made on while nobody reads it.
  std::chrono::milliseconds resume_grace{30'000};
  // How long an answer waits for a language worker that can go on with it.
  std::chrono::milliseconds continue_timeout{60'000};
  // For so long a client may take nothing of what is sent to it over gRPC, as over HTTP. No flag.
  std::chrono::milliseconds send_patience{30'000};
  // Sessions that nobody used for so long are deleted, unless they say otherwise; 0 = never.
  std::chrono::milliseconds session_ttl{0};
  int max_turns_per_session = 10'000;
  int max_images_per_session = 1'000;

  // Share of the sessions that a version labelled "canary" gets, unless set by an RPC.
  double canary_share = 0.1;
  RolloutOptions rollout;

  TurnGateOptions gate;
  uint64_t max_image_bytes = 20u << 20;
  int max_image_pixels = 64'000'000;
  int max_images_per_turn = 8;
  // Text and pictures of one request together.
  uint64_t max_turn_bytes = 30u << 20;
  // Uploads and questions that are held, all together.
  uint64_t request_bytes = 1u << 30;
  // Pictures on their way to the vision services, all together; more wait.
  uint64_t transfer_bytes = 256u << 20;
  // An upload of which nothing came for so long is ended.
  std::chrono::milliseconds upload_patience{60'000};
  PictureUrlOptions picture_urls;
  // Upper limit of a turn, whatever the client's deadline.
  std::chrono::milliseconds request_timeout{10 * 60 * 1000};

  // Instead of serving: copy the sessions to a new folder, or make them from such a copy.
  std::string backup_to, restore_from;
  // The process copies a store and ends: it listens nowhere and asks nobody for a key.
  bool copies_store() const { return !backup_to.empty() || !restore_from.empty(); }

  // $XDG_DATA_HOME or ~/.local/share, then /llava-serving/gateway.
  static std::string DefaultDataDir();
  void Declare(Settings& settings);
  // INVALID_ARGUMENT naming the setting.
  absl::Status Check() const;

  // Largest body of an HTTP request: text and pictures in base64, and the JSON around them.
  uint64_t max_http_body_bytes() const { return max_turn_bytes / 3 * 4 + (1u << 20); }
  ImageLimits image_limits() const {
    return {.max_bytes = max_image_bytes, .max_pixels = static_cast<uint64_t>(max_image_pixels)};
  }
};

}  // namespace llava
