#pragma once

// The memory of conversations in one folder: SQLite and picture files.

#include <atomic>
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
#include "server/gateway/conversation_store.h"
#include "server/gateway/gateway_metrics.h"
#include "server/gateway/log_checkpointer.h"
#include "server/gateway/store_tables.h"
#include "server/runtime/mutex.h"

namespace llava {

// One thread of its own does all that touches the disk, and runs the callbacks. Requests that wait
// together share one transaction and one sync (group commit); of the pages that wait only some at a
// time, as each may take as long as all else. What only reads does not fail with what others
// write. Another thread brings SQLite's log into the tables, beside the commits. UNAVAILABLE when
// `max_waiting` requests (pages) wait. The destructor runs all that waits.
class SessionStore : public ConversationStore {
 public:
  struct Options {
    size_t max_waiting = 1024;
    StoreTables::Limits limits;
  };

  // Makes the folder, locks it against a second process (FAILED_PRECONDITION), migrates the tables,
  // removes stray files.
  static absl::StatusOr<std::unique_ptr<SessionStore>> Open(const std::string& folder,
                                                            GatewayMetrics& metrics,
                                                            Options options);
  ~SessionStore() override;

  std::vector<UnfinishedTurn> TakeUnfinished() override { return std::move(unfinished_); }
  void CreateSession(v1::Session session, Done<v1::Session> done) override;
  void GetSession(std::string id, Done<v1::Session> done) override;
  void ListSessions(std::optional<std::string> owner, uint32_t page_size, std::string page_token,
                    Done<SessionPage> done) override;
  void UpdateSession(v1::Session changes, google::protobuf::FieldMask mask,
                     Done<v1::Session> done) override;
  void DeleteSession(std::string id, Done<Removed> done) override;
  void Expire(std::chrono::microseconds default_expiry,
              std::function<bool(const std::string&)> busy, Done<Removed> done) override;
  void AddImage(std::string session_id, StoredImage image,
                std::function<void(absl::Status)> done) override;
  void ReadImage(std::string id, Done<std::string> done) override;
  void ListTurns(std::string session_id, uint32_t page_size, std::string page_token,
                 Done<TurnPage> done) override;
  void GetConversation(std::string session_id, RequestKey request,
                       Done<Conversation> done) override;
  void FindRequest(std::string session_id, RequestKey request, Done<std::string> done) override;
  void GetTurn(std::string session_id, std::string turn_id, Done<StoredTurn> done) override;
  void BeginTurn(NewTurn turn, Done<uint32_t> done) override;
  void RestartTurn(NewTurn turn, Done<uint32_t> done) override;
  void NoteTries(std::string session_id, std::string turn_id, uint32_t tries,
                 std::vector<uint64_t> taken_up, std::function<void(absl::Status)> done) override;
  void FinishTurn(TurnResult result, std::function<void(absl::Status)> done) override;

 private:
  // kPage: a read that may be long.
  enum class Kind { kRead, kPage, kWrite };
  struct Job {
    std::function<absl::Status(StoreTables&)> work;
    std::function<void(absl::Status)> done;
    Kind kind = Kind::kWrite;
    bool needs_uses = false;  // looks at when sessions were used
  };
  enum class Place { kBounded, kReserved };
  using Jobs = std::vector<Job*>;

  SessionStore(int lock_file, std::unique_ptr<SqlDatabase> database, ImageFiles files,
               GatewayMetrics& metrics, Options options);

  template <typename T>
  void Post(Kind kind, std::function<absl::StatusOr<T>(StoreTables&)> work, Done<T> done,
            bool needs_uses = false);
  void Post(Job job, Place place = Place::kBounded);
  void Loop();
  void RunBatch(std::deque<Job> batch);
  // In one transaction; what each came to. False: it was not committed, and each has its error.
  bool Commit(const Jobs& jobs, std::vector<absl::Status>& results);
  // One transaction; `results` of the jobs count if it is OK. Not `guarded`, it is ABORTED when a
  // job fails that has written: nobody could take back that one alone.
  absl::Status RunTransaction(const Jobs& jobs, bool guarded, std::vector<absl::Status>& results);
  // Takes the files of those pictures away that have no row, or not any more, and leaves only them
  // in `ids`.
  void RemoveFiles(std::vector<std::string>& ids);
  // The end of a deletion, behind its commit.
  Done<Removed> AfterRemoval(Done<Removed> done);

  // What became of bringing the log into the tables. Thread-safe.
  void OnCheckpoint(const absl::Status& status);
  void ShowQueue() LLAVA_REQUIRES(mutex_);

  const int lock_file_;
  const Options options_;
  GatewayMetrics& metrics_;
  // Used by the thread only, after Open.
  std::unique_ptr<SqlDatabase> database_;
  ImageFiles files_;
  StoreTables tables_;
  std::vector<UnfinishedTurn> unfinished_;
  std::unique_ptr<LogCheckpointer> checkpointer_;
  std::atomic<bool> checkpoint_fails_ = false;  // the last one did

  Mutex mutex_;
  CondVar changed_;
  std::deque<Job> queue_ LLAVA_GUARDED_BY(mutex_);
  std::deque<Job> pages_ LLAVA_GUARDED_BY(mutex_);
  size_t under_way_ LLAVA_GUARDED_BY(mutex_) = 0;
  bool idle_ LLAVA_GUARDED_BY(mutex_) = false;  // the thread waits
  bool closing_ LLAVA_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace llava
