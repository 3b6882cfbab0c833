#pragma once

// The truth of every conversation: sessions, turns and pictures on disk.

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/gateway_metrics.h"
#include "server/gateway/store_tables.h"
#include "server/runtime/mutex.h"

namespace llava {

// One thread of its own does all that touches the disk. Requests that wait together share one
// transaction and one sync (group commit); a request's callback runs on that thread after the
// commit, so what it acknowledges is durable. A callback must not block.
//
// Thread-safe. UNAVAILABLE with RetryInfo when `max_waiting` requests wait; FinishTurn always gets
// in, as each has taken its place by BeginTurn. The destructor runs all that waits.
class SessionStore {
 public:
  template <typename T>
  using Done = std::function<void(absl::StatusOr<T>)>;

  struct Options {
    size_t max_waiting = 1024;
    StoreTables::Limits limits;
  };

  // Makes the folder, locks it against a second process (FAILED_PRECONDITION), migrates the tables,
  // removes stray files.
  static absl::StatusOr<std::unique_ptr<SessionStore>> Open(const std::string& folder,
                                                            GatewayMetrics& metrics,
                                                            Options options);
  ~SessionStore();

  // What Open found running. Once.
  std::vector<UnfinishedTurn> TakeUnfinished() { return std::move(unfinished_); }

  // Keeps `session.owner` too, for good.
  void CreateSession(v1::Session session, Done<v1::Session> done);
  void GetSession(std::string id, Done<v1::Session> done);
  // Of one owner, or all.
  void ListSessions(std::optional<std::string> owner, uint32_t page_size, std::string page_token,
                    Done<SessionPage> done);
  void UpdateSession(v1::Session changes, google::protobuf::FieldMask mask, Done<v1::Session> done);
  // Its pictures go too, unless another session has them.
  void DeleteSession(std::string id, std::function<void(absl::Status)> done);
  // Deletes sessions that nobody used for long, unless `busy` says so of their id, and forgets old
  // requests. `done` gets the number of sessions.
  void Expire(std::chrono::microseconds default_expiry,
              std::function<bool(const std::string&)> busy, Done<int64_t> done);

  void AddImage(std::string session_id, StoredImage image, std::function<void(absl::Status)> done);
  void ReadImage(std::string id, Done<std::string> done);

  void ListTurns(std::string session_id, uint32_t page_size, std::string page_token,
                 Done<TurnPage> done);
  // With `request`: also the turn that it has begun before.
  void GetConversation(std::string session_id, RequestKey request, Done<Conversation> done);
  void GetTurn(std::string session_id, std::string turn_id, Done<StoredTurn> done);
  // Durable when `done` runs; with it the turn's number.
  void BeginTurn(NewTurn turn, Done<v1::Turn> done);
  // The same for a turn that exists (`turn.id`): its answer is emptied. Ignores text and pictures.
  void RestartTurn(NewTurn turn, Done<v1::Turn> done);
  void FinishTurn(TurnResult result, std::function<void(absl::Status)> done);

 private:
  struct Job {
    std::function<absl::Status(StoreTables&)> work;
    std::function<void(absl::Status)> done;
  };
  enum class Place { kBounded, kReserved };

  SessionStore(int lock_file, std::unique_ptr<SqlDatabase> database, ImageFiles files,
               GatewayMetrics& metrics, Options options);

  template <typename T>
  void Post(std::function<absl::StatusOr<T>(StoreTables&)> work, Done<T> done);
  void Post(Job job, Place place = Place::kBounded);
  void Loop();
  void RunBatch(std::deque<Job> batch);
  // Files of pictures whose rows went with a committed deletion, unless they came back since.
  void RemoveFiles(const std::vector<std::string>& ids);

  const int lock_file_;
  const Options options_;
  GatewayMetrics& metrics_;
  // Used by the thread only, after Open.
  std::unique_ptr<SqlDatabase> database_;
  ImageFiles files_;
  StoreTables tables_;
  std::vector<UnfinishedTurn> unfinished_;

  Mutex mutex_;
  CondVar changed_;
  std::deque<Job> queue_ LLAVA_GUARDED_BY(mutex_);
  bool closing_ LLAVA_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace llava
