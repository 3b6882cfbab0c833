#pragma once

// What the session store keeps, as its callers see it.

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "llava/v1/chat.pb.h"

namespace llava {

// NOT_FOUND, in the words that everybody uses who finds no such session.
absl::Status NoSession(const std::string& id);

// A picture with its file.
struct StoredImage {
  v1::ImageInfo info;
  std::shared_ptr<const std::string> bytes;
};

// A turn and what only the gateway keeps of it: opaque token ids of the answer.
struct StoredTurn {
  v1::Turn turn;
  v1::TokenIds tokens;
};

// A session with all of its turns, oldest first.
struct Conversation {
  v1::Session session;
  std::vector<StoredTurn> turns;
  // Ids of all pictures of the session, asked about or not.
  std::set<std::string> images;
};

// A turn to be recorded before it is acknowledged.
struct NewTurn {
  std::string id;
  std::string session_id;
  std::string user_text;
  // In order: pictures that came with the turn (with bytes) or are known in the session (ids only).
  std::vector<StoredImage> images;
  v1::ModelVersion model;
  uint64_t seed = 0;
  v1::SamplingParams sampling;
};

// The end of a turn.
struct TurnResult {
  std::string session_id;
  std::string turn_id;
  v1::TurnState state = v1::TURN_STATE_FAILED;
  v1::FinishReason reason = v1::FINISH_REASON_ERROR;
  std::string error_message;
  std::string answer_text;
  v1::TokenIds tokens;
  v1::ModelVersion model;
  v1::Usage usage;
  v1::Timings timings;
};

struct SessionPage {
  std::vector<v1::Session> sessions;
  std::string next_page_token;
};

struct TurnPage {
  std::vector<v1::Turn> turns;
  std::string next_page_token;
};

}  // namespace llava
