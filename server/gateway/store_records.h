#pragma once

// What the session store keeps, as its callers see it.

#include <chrono>
#include <cstddef>
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

// NOT_FOUND: the session does not have the picture that `images[index]` of a question names.
absl::Status NoPicture(size_t index, const std::string& id);

// A picture with its file.
struct StoredImage {
  v1::ImageInfo info;
  std::shared_ptr<const std::string> bytes;
};

// NoPicture for the first of a question's `images` that did not come with it and is not `known` in
// its session.
absl::Status CheckPictures(const std::vector<StoredImage>& images,
                           const std::set<std::string>& known);

// A turn and what only the gateway keeps of it.
struct StoredTurn {
  v1::Turn turn;
  v1::TokenIds tokens;  // of the answer, opaque
  absl::StatusCode error_code = absl::StatusCode::kOk;
  // Length of the text each time that a later process took the answer up; 0 where it was made anew.
  std::vector<uint64_t> taken_up;
};

// A client's name for a request, and what is asked in it.
struct RequestKey {
  std::string key;   // empty: none
  std::string hash;  // SHA-256 of the content
};

// INVALID_ARGUMENT: the key was used for `turn_id`, which asked something else.
absl::Status RequestKeyTaken(const std::string& turn_id);

// On whose behalf and on which terms a turn runs. Kept until its end.
struct TurnTerms {
  using Time = std::chrono::system_clock::time_point;

  std::string key_name;  // of the API key; empty without keys
  uint32_t weight = 1;
  int32_t priority = 0;
  uint64_t tokens = 0;  // reserved
  Time asked;
  Time deadline = Time::max();  // the caller's
  v1::OnDisconnect on_disconnect = v1::ON_DISCONNECT_UNSPECIFIED;
};

// A turn that an earlier process left running.
struct UnfinishedTurn {
  std::string session_id, turn_id;
  uint32_t number = 0;
  v1::ModelVersion model;
  v1::SamplingParams sampling;  // with its seed
  RequestKey request;
  TurnTerms terms;
  // See ConversationStore::NoteTries and StoredTurn.
  uint32_t tries = 0;
  std::vector<uint64_t> taken_up;
};

// A session with its turns, oldest first, from the first one that was not dropped on.
struct Conversation {
  v1::Session session;
  std::vector<StoredTurn> turns;
  // The last picture of the turns before, empty if they have none.
  std::string kept_image;
  // Ids of all pictures of the session, asked about or not.
  std::set<std::string> images;
  // The turn that was asked by the same request before, if any: then there is no other.
  std::string repeated_turn_id;
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
  RequestKey request;
  // Turns that no longer fit into the context; they stay out of all later prompts.
  std::vector<std::string> dropped_turns;
  TurnTerms terms;
  std::vector<uint64_t> taken_up;  // of a turn made anew, see StoredTurn
};

// The end of a turn.
struct TurnResult {
  std::string session_id;
  std::string turn_id;
  v1::TurnState state = v1::TURN_STATE_FAILED;
  v1::FinishReason reason = v1::FINISH_REASON_ERROR;
  absl::StatusCode error_code = absl::StatusCode::kOk;  // what the client is told
  std::string error_message;
  std::string answer_text;
  std::vector<uint64_t> taken_up;
  v1::TokenIds tokens;
  v1::ModelVersion model;
  v1::Usage usage;
  v1::Timings timings;

  // The request is answered, if only by its beginning: sent again, it gets this turn again.
  bool is_answer() const { return !answer_text.empty() || error_code == absl::StatusCode::kOk; }
};

// What went with sessions that were deleted or expired.
struct Removed {
  std::vector<std::string> sessions;  // ids
  std::vector<std::string> pictures;  // ids of those that no session holds any more
  bool more = false;                  // have expired, and go at the next call
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
