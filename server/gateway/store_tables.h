#pragma once

// The session store's tables: what each request of the gateway does to them.

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/field_mask.pb.h"
#include "server/gateway/api_keys.h"
#include "server/gateway/image_files.h"
#include "server/gateway/sqlite.h"
#include "server/gateway/store_records.h"

namespace llava {

// Runs on the store's thread, inside a transaction that the store opens. NOT_FOUND: no such
// session, turn or picture, with a hint. Times are microseconds since 1970.
class StoreTables {
 public:
  // Of a page: below what clients take in one message, unless one item is larger.
  static constexpr uint64_t kPageBytes = 2u << 20;

  // 0: no limit.
  struct Limits {
    int turns_per_session = 0, images_per_session = 0;
    // What a session's owner may keep, asked when something is added; null: as much as he likes.
    std::function<KeyLimits(const std::string& owner)> of_owner = {};
  };

  StoreTables(SqlDatabase& database, ImageFiles& files, Limits limits)
      : database_(database), files_(files), limits_(limits) {}

  absl::Status InsertSession(const v1::Session& session, int64_t now_us);
  absl::StatusOr<v1::Session> FindSession(const std::string& id);
  // Last used first; of one owner, or all; pages as those of turns. INVALID_ARGUMENT: a token that
  // this did not make.
  absl::StatusOr<SessionPage> PageOfSessions(const std::optional<std::string>& owner,
                                             uint32_t page_size, const std::string& page_token);
  // Takes the fields that `mask` names.
  absl::StatusOr<v1::Session> ChangeSession(const v1::Session& changes,
                                            const google::protobuf::FieldMask& mask);
  // Returns the pictures that no session holds any more; their files are still there.
  absl::StatusOr<std::vector<std::string>> RemoveSession(const std::string& id);
  // Sessions without a running turn that nobody used for their idle expiry, or for `default_expiry`
  // (0: never) where they have none; at most `limit`.
  absl::StatusOr<std::vector<std::string>> ExpiredSessions(int64_t now_us,
                                                           int64_t default_expiry_us,
                                                           int64_t limit);
  // How it asks; a test looks at what SQLite makes of it.
  static const char kExpiredSessions[];

  // Writes the file and its row unless known, and makes the session hold it. RESOURCE_EXHAUSTED:
  // the session has its fill of pictures.
  absl::Status InsertImage(const std::string& session_id, const StoredImage& image, int64_t now_us);
  absl::StatusOr<bool> HasImage(const std::string& id);
  // Pictures whose files were made since the last call: to go again if their rows did not stay.
  std::vector<std::string> TakeNewFiles();

  // A page ends at `page_size` turns or about 2 MiB, whichever comes first; it has one at least.
  absl::StatusOr<TurnPage> PageOfTurns(const std::string& session_id, uint32_t page_size,
                                       const std::string& page_token);
  // Without turns before the last dropped one, and without the texts of questions that no prompt
  // has, as they ended without an answer, but for the last one.
  absl::StatusOr<Conversation> FindConversation(const std::string& session_id);
  absl::StatusOr<StoredTurn> FindTurn(const std::string& session_id, const std::string& turn_id);
  // The turn that was begun by this request of the last 24 hours, empty if none. INVALID_ARGUMENT:
  // the key was used for something else.
  absl::StatusOr<std::string> FindRepeated(const std::string& session_id, const RequestKey& request,
                                           int64_t now_us);
  // RESOURCE_EXHAUSTED: the session has its fill of turns.
  absl::StatusOr<uint32_t> InsertTurn(const NewTurn& turn, int64_t now_us);
  // Empties the answer of a turn and sets it running with model, seed, sampling and terms of
  // `turn`.
  absl::StatusOr<uint32_t> RestartTurn(const NewTurn& turn, int64_t now_us);
  absl::Status SetTries(const std::string& session_id, const std::string& turn_id, uint32_t tries,
                        const std::vector<uint64_t>& taken_up);
  // No error when the session was deleted meanwhile.
  absl::Status EndTurn(const TurnResult& result, int64_t now_us);

  // Turns that never ended, those asked first first.
  absl::StatusOr<std::vector<UnfinishedTurn>> UnfinishedTurns();
  absl::StatusOr<std::set<std::string>> ImageIds();
  absl::StatusOr<int64_t> CountSessions();

  // When sessions were used is kept in memory: written with each turn, it would be half of what a
  // commit writes. Must run before sessions are listed or expire, and now and then. What a crash
  // takes away is at most when a session was listed; its turns keep it from expiring.
  absl::Status WriteUses();
  // The transaction is over; without `committed` the uses are to be written again.
  void EndTransaction(bool committed);
  size_t unwritten_uses() const { return used_us_.size(); }

 private:
  // What a new turn and one made anew have in common.
  absl::Status FinishBegin(const NewTurn& turn, int64_t now_us);
  KeyLimits LimitsOf(const std::string& owner) const;
  // May the owner of a session keep one more picture?
  absl::Status CheckPictures(const std::string& owner, const v1::ImageInfo& image);
  absl::Status WriteMetadata(const v1::Session& session);
  // The pictures of a turn with bytes are stored, those without must be the session's.
  absl::Status AttachImages(const NewTurn& turn, int64_t now_us);
  enum class Texts { kAll, kOfPrompt };
  // Turns `first`.. of a session, at most `limit`, oldest first, with their pictures.
  absl::StatusOr<std::vector<StoredTurn>> ReadTurns(const std::string& session_id, int64_t first,
                                                    int64_t limit, Texts texts = Texts::kAll);

  SqlDatabase& database_;
  ImageFiles& files_;
  const Limits limits_;
  using Uses = std::unordered_map<std::string, int64_t>;
  Uses used_us_;     // by session
  Uses written_us_;  // in this transaction
  std::vector<std::string> new_files_;
};

}  // namespace llava
