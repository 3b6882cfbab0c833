#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llava/v1/chat.pb.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/model_choice.h"
#include "server/gateway/prompt.h"
#include "server/gateway/request_memory.h"
#include "server/gateway/store_records.h"
#include "server/gateway/turn_gate.h"

namespace llava {

// A question that passed the checks of request_checks.h.
struct TurnRequest {
  Caller caller;
  std::shared_ptr<RequestMemory::Share> memory;  // what the question and its pictures take
  bool charged = false;                          // counted as a request of the key
  std::shared_ptr<TurnPermit> permit;            // its place; null: not yet
  std::string request_id;
  // Empty: a call without session; `prompt` is the whole conversation.
  std::string session_id;
  Prompt prompt;
  // With a session: the new message ...
  std::string text;
  std::vector<StoredImage> images;
  // ... or the turn to be answered anew.
  std::string regenerate_turn_id;
  ModelChoice model;  // empty: what the session says
  v1::SamplingParams sampling;
  int32_t priority = 0;
  std::chrono::system_clock::time_point deadline = std::chrono::system_clock::time_point::max();
  std::chrono::steady_clock::time_point received = std::chrono::steady_clock::now();
  // DETACH: the turn outlives its readers by --resume-grace; CANCEL: it ends with the last one.
  // Unset: DETACH with a session, CANCEL without.
  v1::OnDisconnect on_disconnect = v1::ON_DISCONNECT_UNSPECIFIED;
  RequestKey key;
  std::chrono::system_clock::time_point asked = std::chrono::system_clock::now();

  bool detaches() const {
    return on_disconnect == v1::ON_DISCONNECT_DETACH ||
           (on_disconnect == v1::ON_DISCONNECT_UNSPECIFIED && !session_id.empty());
  }
};

}  // namespace llava
