#pragma once

// What a gateway asks of the memory of its conversations.
// tests/server/gateway/store_conformance_test says it in full; every implementation must pass it.

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/field_mask.pb.h"
#include "llava/v1/chat.pb.h"
#include "server/gateway/store_records.h"

namespace llava {

// The truth of every conversation: sessions, turns and pictures. Nothing here blocks; a callback
// runs once, on a thread of the store, must not block, and what it acknowledges is durable. A
// request that fails changes nothing. NOT_FOUND: no such session, turn or picture, with a hint.
// UNAVAILABLE with RetryInfo: too much waits; FinishTurn and NoteTries always get in, as each turn
// has taken its place by BeginTurn.
//
// Thread-safe.
class ConversationStore {
 public:
  template <typename T>
  using Done = std::function<void(absl::StatusOr<T>)>;

  virtual ~ConversationStore() = default;

  // Turns that an earlier process left running, those asked first first. Once.
  virtual std::vector<UnfinishedTurn> TakeUnfinished() = 0;

  // Keeps `session.owner` too, for good.
  virtual void CreateSession(v1::Session session, Done<v1::Session> done) = 0;
  virtual void GetSession(std::string id, Done<v1::Session> done) = 0;
  // Of one owner, or all; last used first. A page ends at `page_size` sessions, sooner when they
  // are large; it has one at least. INVALID_ARGUMENT: a token that is none of ours.
  virtual void ListSessions(std::optional<std::string> owner, uint32_t page_size,
                            std::string page_token, Done<SessionPage> done) = 0;
  // Takes the fields that `mask` names.
  virtual void UpdateSession(v1::Session changes, google::protobuf::FieldMask mask,
                             Done<v1::Session> done) = 0;
  // Its pictures go too, unless another session has them.
  virtual void DeleteSession(std::string id, Done<Removed> done) = 0;
  // Deletes sessions that nobody used for long, unless `busy` says so of their id or a turn of
  // theirs is running; a hundred at a time.
  virtual void Expire(std::chrono::microseconds default_expiry,
                      std::function<bool(const std::string&)> busy, Done<Removed> done) = 0;

  // RESOURCE_EXHAUSTED: the session has its fill of pictures.
  virtual void AddImage(std::string session_id, StoredImage image,
                        std::function<void(absl::Status)> done) = 0;
  virtual void ReadImage(std::string id, Done<std::string> done) = 0;

  // Oldest first, in pages as above.
  virtual void ListTurns(std::string session_id, uint32_t page_size, std::string page_token,
                         Done<TurnPage> done) = 0;
  // Questions that no prompt has, ended without an answer or dropped, may come without their text;
  // the last one has it. With `request`: also the turn that it began in the last 24 hours;
  // INVALID_ARGUMENT when its key was used for something else.
  virtual void GetConversation(std::string session_id, RequestKey request,
                               Done<Conversation> done) = 0;
  // Only that turn's id, empty if there is none, in the same way.
  virtual void FindRequest(std::string session_id, RequestKey request, Done<std::string> done) = 0;
  virtual void GetTurn(std::string session_id, std::string turn_id, Done<StoredTurn> done) = 0;
  // `done` gets the turn's number. RESOURCE_EXHAUSTED: the session has its fill of turns.
  virtual void BeginTurn(NewTurn turn, Done<uint32_t> done) = 0;
  // The same for a turn that exists (`turn.id`): its answer is emptied. Ignores text and pictures.
  virtual void RestartTurn(NewTurn turn, Done<uint32_t> done) = 0;
  // No error when the session was deleted meanwhile.
  virtual void FinishTurn(TurnResult result, std::function<void(absl::Status)> done) = 0;
  // Of a running turn: how many processes may have died of taking it up, and where it was taken up
  // (see StoredTurn). No error when it has ended.
  virtual void NoteTries(std::string session_id, std::string turn_id, uint32_t tries,
                         std::vector<uint64_t> taken_up,
                         std::function<void(absl::Status)> done) = 0;
};

}  // namespace llava
