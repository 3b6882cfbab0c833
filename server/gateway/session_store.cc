#include "server/gateway/session_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/gateway/file_io.h"
#include "server/gateway/store_schema.h"
#include "server/runtime/error_reason.h"
#include "server/runtime/failpoint.h"
#include "server/runtime/logging.h"
#include "server/runtime/status.h"

namespace llava {
namespace {

// When so many sessions were used since it was last written down.
constexpr size_t kMostUses = 1000;
// Pages in one transaction: others wait for it.
constexpr int kPagesAtOnce = 4;

int64_t NowMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// A store of an earlier version, or whose owner means it so.
void WarnOfReaders(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  const auto allows = [](const fs::path& path, fs::perms what) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    return fs::exists(status) && (status.permissions() & what) != fs::perms::none;
  };
  if (allows(folder, fs::perms::others_exec) &&
      allows(folder / "sessions.db", fs::perms::others_read)) {
    LogWarning("everybody on this machine may read the sessions: chmod -R go= the folder",
               {{"folder", folder.string()}});
  }
}

// Held until the descriptor is closed, also by a crash.
absl::StatusOr<int> LockFolder(const std::filesystem::path& folder) {
  const auto path = folder / "lock";
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot open ", path.string(), ": ", std::strerror(errno), " (--data-dir)"));
  }
  if (flock(file, LOCK_EX | LOCK_NB) != 0) {
    close(file);
    return absl::FailedPreconditionError(absl::StrCat(
        folder.string(), " is in use by another gateway; stop it or name another --data-dir"));
  }
  return file;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SessionStore>> SessionStore::Open(const std::string& folder,
                                                                 GatewayMetrics& metrics,
                                                                 Options options) {
  const std::filesystem::path path(folder);
  if (const auto made = MakePrivateFolder(path); !made.ok()) {
    return absl::FailedPreconditionError(absl::StrCat(made.message(), " (--data-dir)"));
  }
  auto lock = LockFolder(path);
  if (!lock.ok()) return lock.status();
  WarnOfReaders(path);
  auto database = SqlDatabase::Open((path / "sessions.db").string());
  auto files = ImageFiles::Open(path / "images");
  absl::Status status = database.ok() ? files.status() : database.status();
  if (status.ok()) status = MigrateStore(**database);
  if (!status.ok()) {
    close(*lock);
    return status;
  }
  std::unique_ptr<SessionStore> store(
      new SessionStore(*lock, *std::move(database), *std::move(files), metrics, options));

  auto unfinished = store->tables_.UnfinishedTurns();
  auto sessions = store->tables_.CountSessions();
  auto images = store->tables_.ImageIds();
  if (!unfinished.ok()) return unfinished.status();
  if (!sessions.ok()) return sessions.status();
  if (!images.ok()) return images.status();
  if (status = store->files_.Sweep(*images); !status.ok()) return status;
  auto checkpointer = LogCheckpointer::Open(
      (path / "sessions.db").string(),
      [raw = store.get()](const absl::Status& status) { raw->OnCheckpoint(status); });
  if (!checkpointer.ok()) return checkpointer.status();
  store->checkpointer_ = *std::move(checkpointer);
  store->unfinished_ = *std::move(unfinished);
  metrics.sessions.Set(static_cast<double>(*sessions));
  store->thread_ = std::thread([raw = store.get()] { raw->Loop(); });
  return store;
}

SessionStore::SessionStore(int lock_file, std::unique_ptr<SqlDatabase> database, ImageFiles files,
                           GatewayMetrics& metrics, Options options)
    : lock_file_(lock_file),
      options_(options),
      metrics_(metrics),
      database_(std::move(database)),
      files_(std::move(files)),
      tables_(*database_, files_, options.limits) {}

SessionStore::~SessionStore() {
  {
    MutexLock lock(mutex_);
    closing_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
  checkpointer_.reset();
  database_.reset();
  close(lock_file_);
}

void SessionStore::Post(Job job, Place place) {
  bool taken = false, wake = false;
  {
    MutexLock lock(mutex_);
    auto& queue = job.kind == Kind::kPage ? pages_ : queue_;
    taken = !closing_ && (place == Place::kReserved || queue.size() < options_.max_waiting);
    if (taken) {
      queue.push_back(std::move(job));
      ShowQueue();
      wake = std::exchange(idle_, false);
    }
  }
  if (wake) changed_.NotifyAll();
  if (taken) return;
  job.done(OverloadedError("the session store has too much to do; try again later",
                           std::chrono::milliseconds(500)));
}

void SessionStore::ShowQueue() {
  metrics_.store_queue.Set(static_cast<double>(queue_.size() + pages_.size() + under_way_));
}

template <typename T>
void SessionStore::Post(Kind kind, std::function<absl::StatusOr<T>(StoreTables&)> work,
                        Done<T> done, bool needs_uses) {
  auto result = std::make_shared<absl::StatusOr<T>>(absl::UnknownError("not run"));
  Post(Job{[work = std::move(work), result](StoreTables& tables) {
             *result = work(tables);
             return result->status();
           },
           [done = std::move(done), result](absl::Status status) {
             if (status.ok()) {
               done(std::move(*result));
             } else {
               done(std::move(status));
             }
           },
           kind, needs_uses});
}

void SessionStore::Loop() {
  while (true) {
    std::deque<Job> batch;
    {
      MutexLock lock(mutex_);
      under_way_ = 0;
      ShowQueue();
      while (queue_.empty() && pages_.empty() && !closing_) {
        idle_ = true;
        changed_.Wait(mutex_);
      }
      if (queue_.empty() && pages_.empty()) break;
      batch.swap(queue_);
      for (int i = 0; i < kPagesAtOnce && !pages_.empty(); ++i) {
        batch.push_back(std::move(pages_.front()));
        pages_.pop_front();
      }
      under_way_ = batch.size();  // and is shown: the disk may hang
    }
    RunBatch(std::move(batch));
  }
  if (tables_.unwritten_uses() == 0) return;
  RunBatch(std::deque<Job>(1, Job{[](StoreTables&) { return absl::OkStatus(); },
                                  [](const absl::Status&) {}, Kind::kWrite, /*needs_uses=*/true}));
}

absl::Status SessionStore::RunTransaction(const Jobs& jobs, bool guarded,
                                          std::vector<absl::Status>& results) {
  results.clear();
  if (auto status = database_->Query("BEGIN"); !status.ok()) return status;
  // Not for plain reads: on a full disk they would fail with what they do not need.
  const bool many = tables_.unwritten_uses() >= kMostUses;
  const bool uses = std::any_of(jobs.begin(), jobs.end(), [many](const Job* job) {
    return job->needs_uses || (many && job->kind == Kind::kWrite);
  });
  if (uses) {
    if (auto status = tables_.WriteUses(); !status.ok()) return status;
  }
  for (const Job* job : jobs) {
    const int64_t changes = database_->total_changes();
    if (guarded) {
      if (auto status = database_->Query("SAVEPOINT request"); !status.ok()) return status;
    }
    results.push_back(job->work(tables_));
    if (!results.back().ok() && !database_->in_transaction()) return results.back();
    if (guarded) {
      auto status =
          results.back().ok() ? absl::OkStatus() : database_->Query("ROLLBACK TO request");
      if (status.ok()) status = database_->Query("RELEASE request");
      if (!status.ok()) return status;
    } else if (!results.back().ok() && database_->total_changes() != changes) {
      return absl::AbortedError("a request failed that had written");
    }
  }
  if (auto status = LLAVA_FAILPOINT("store.commit"); !status.ok()) return status;
  return database_->Query("COMMIT");
}

bool SessionStore::Commit(const Jobs& jobs, std::vector<absl::Status>& results) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t changes = database_->total_changes();
  // A request that fails takes back only its own changes. That seldom is to be done and costs all
  // of them a savepoint, so the batch runs again with these when it is.
  absl::Status transaction = RunTransaction(jobs, /*guarded=*/false, results);
  if (absl::IsAborted(transaction)) {
    transaction = database_->Query("ROLLBACK");
    tables_.EndTransaction(/*committed=*/false);
    if (transaction.ok()) transaction = RunTransaction(jobs, /*guarded=*/true, results);
  }
  (void)LLAVA_FAILPOINT("store.committed");
  tables_.EndTransaction(transaction.ok());
  if (!transaction.ok()) {
    LogError("transaction failed", {{"error", std::string(transaction.message())}});
    if (database_->in_transaction()) (void)database_->Query("ROLLBACK");
    metrics_.store_failures_total.Increment();
    results.assign(jobs.size(), transaction);
    return false;
  }
  const auto faults = std::count_if(results.begin(), results.end(), [](const absl::Status& each) {
    return absl::IsInternal(each) || HasReason(each, kReasonDiskFull);
  });
  if (faults > 0) metrics_.store_failures_total.Increment(static_cast<double>(faults));
  if (database_->total_changes() != changes) {
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    metrics_.store_commit_seconds.Observe(took.count());
  }
  return true;
}

void SessionStore::RunBatch(std::deque<Job> batch) {
  const int64_t changes = database_->total_changes();
  Jobs jobs;
  for (Job& job : batch) jobs.push_back(&job);
  std::vector<absl::Status> results;
  results.reserve(batch.size());
  const bool committed = Commit(jobs, results);
  // What only reads has no part in what could not be written. It reads once more: it may have seen
  // what was taken back. When sessions were used it then takes as it was last written.
  if (!committed) {
    std::vector<size_t> places;
    Jobs readers;
    for (size_t i = 0; i < batch.size(); ++i) {
      if (batch[i].kind == Kind::kWrite) continue;
      batch[i].needs_uses = false;
      places.push_back(i);
      readers.push_back(&batch[i]);
    }
    std::vector<absl::Status> again;
    if (!readers.empty()) Commit(readers, again);
    for (size_t i = 0; i < places.size(); ++i) results[places[i]] = again[i];
  }
  auto new_files = tables_.TakeNewFiles();
  RemoveFiles(new_files);  // those whose rows were taken back
  for (size_t i = 0; i < batch.size(); ++i) batch[i].done(results[i]);
  const bool wrote = database_->total_changes() != changes;
  if (wrote && checkpointer_->OnCommit(database_->log_pages())) {
    OnCheckpoint(database_->CheckpointLog());
  }
}

void SessionStore::OnCheckpoint(const absl::Status& status) {
  if (!status.ok()) metrics_.store_failures_total.Increment();
  if (checkpoint_fails_.exchange(!status.ok()) == !status.ok()) return;
  if (status.ok()) {
    LogInfo("log of the sessions brought in again");
  } else {
    LogWarning("log of the sessions not brought in: it grows",
               {{"error", std::string(status.message())}});
  }
}

void SessionStore::RemoveFiles(std::vector<std::string>& ids) {
  std::erase_if(ids, [this](const std::string& id) {
    const auto known = tables_.HasImage(id);
    return !known.ok() || *known;  // a stray file is swept at the next start
  });
  for (const std::string& id : ids) {
    if (auto status = files_.Remove(id); !status.ok()) {
      LogWarning("picture file stays", {{"error", std::string(status.message())}});
    }
  }
}

SessionStore::Done<Removed> SessionStore::AfterRemoval(Done<Removed> done) {
  return [this, done = std::move(done)](absl::StatusOr<Removed> removed) {
    if (removed.ok()) {
      metrics_.sessions.Decrement(static_cast<double>(removed->sessions.size()));
      RemoveFiles(removed->pictures);
    }
    done(std::move(removed));
  };
}

void SessionStore::CreateSession(v1::Session session, Done<v1::Session> done) {
  Post<v1::Session>(
      Kind::kWrite,
      [session = std::move(session)](StoreTables& tables) -> absl::StatusOr<v1::Session> {
        if (auto status = tables.InsertSession(session, NowMicros()); !status.ok()) return status;
        return tables.FindSession(session.id());
      },
      [this, done = std::move(done)](absl::StatusOr<v1::Session> result) {
        if (result.ok()) metrics_.sessions.Increment();
        done(std::move(result));
      });
}

void SessionStore::GetSession(std::string id, Done<v1::Session> done) {
  Post<v1::Session>(
      Kind::kRead, [id = std::move(id)](StoreTables& tables) { return tables.FindSession(id); },
      std::move(done));
}

void SessionStore::ListSessions(std::optional<std::string> owner, uint32_t page_size,
                                std::string page_token, Done<SessionPage> done) {
  Post<SessionPage>(
      Kind::kPage,
      [owner = std::move(owner), page_size, token = std::move(page_token)](StoreTables& tables) {
        return tables.PageOfSessions(owner, page_size, token);
      },
      std::move(done), /*needs_uses=*/true);
}

void SessionStore::UpdateSession(v1::Session changes, google::protobuf::FieldMask mask,
                                 Done<v1::Session> done) {
  Post<v1::Session>(
      Kind::kWrite,
      [changes = std::move(changes), mask = std::move(mask)](StoreTables& tables) {
        return tables.ChangeSession(changes, mask);
      },
      std::move(done));
}

void SessionStore::DeleteSession(std::string id, Done<Removed> done) {
  Post<Removed>(
      Kind::kWrite,
      [id = std::move(id)](StoreTables& tables) -> absl::StatusOr<Removed> {
        auto pictures = tables.RemoveSession(id);
        if (!pictures.ok()) return pictures.status();
        return Removed{{id}, *std::move(pictures)};
      },
      AfterRemoval(std::move(done)));
}

void SessionStore::Expire(std::chrono::microseconds default_expiry,
                          std::function<bool(const std::string&)> busy, Done<Removed> done) {
  constexpr size_t kAtOnce = 100;  // other requests wait meanwhile
  Post<Removed>(
      Kind::kWrite,
      [default_expiry, busy = std::move(busy)](StoreTables& tables) -> absl::StatusOr<Removed> {
        const int64_t now = NowMicros();
        auto expired = tables.ExpiredSessions(now, default_expiry.count(), kAtOnce);
        if (!expired.ok()) return expired.status();
        Removed removed;
        for (const std::string& id : *expired) {
          if (busy(id)) continue;
          auto pictures = tables.RemoveSession(id);
          if (!pictures.ok()) return pictures.status();
          removed.pictures.insert(removed.pictures.end(), pictures->begin(), pictures->end());
          removed.sessions.push_back(id);
        }
        removed.more = expired->size() == kAtOnce && !removed.sessions.empty();
        return removed;
      },
      AfterRemoval(std::move(done)),
      /*needs_uses=*/true);
}

void SessionStore::AddImage(std::string session_id, StoredImage image,
                            std::function<void(absl::Status)> done) {
  Post(Job{[session_id = std::move(session_id), image = std::move(image)](StoreTables& tables) {
             return tables.InsertImage(session_id, image, NowMicros());
           },
           std::move(done)});
}

void SessionStore::ReadImage(std::string id, Done<std::string> done) {
  Post<std::string>(
      Kind::kRead, [this, id = std::move(id)](StoreTables&) { return files_.Read(id); },
      std::move(done));
}

void SessionStore::ListTurns(std::string session_id, uint32_t page_size, std::string page_token,
                             Done<TurnPage> done) {
  Post<TurnPage>(
      Kind::kPage,
      [id = std::move(session_id), page_size, token = std::move(page_token)](StoreTables& tables) {
        return tables.PageOfTurns(id, page_size, token);
      },
      std::move(done));
}

void SessionStore::GetConversation(std::string session_id, RequestKey request,
                                   Done<Conversation> done) {
  Post<Conversation>(
      Kind::kRead,
      [id = std::move(session_id),
       request = std::move(request)](StoreTables& tables) -> absl::StatusOr<Conversation> {
        if (request.key.empty()) return tables.FindConversation(id);
        auto repeated = tables.FindRepeated(id, request, NowMicros());
        if (!repeated.ok()) return repeated.status();
        if (repeated->empty()) return tables.FindConversation(id);
        auto session = tables.FindSession(id);
        if (!session.ok()) return session.status();
        auto turn = tables.FindTurn(id, *repeated);
        if (!turn.ok()) return turn.status();
        Conversation conversation;
        conversation.session = *std::move(session);
        conversation.turns.push_back(*std::move(turn));
        conversation.repeated_turn_id = *std::move(repeated);
        return conversation;
      },
      std::move(done));
}

void SessionStore::FindRequest(std::string session_id, RequestKey request, Done<std::string> done) {
  Post<std::string>(
      Kind::kRead,
      [id = std::move(session_id), request = std::move(request)](StoreTables& tables) {
        return tables.FindRepeated(id, request, NowMicros());
      },
      std::move(done));
}

void SessionStore::GetTurn(std::string session_id, std::string turn_id, Done<StoredTurn> done) {
  Post<StoredTurn>(
      Kind::kRead,
      [session = std::move(session_id), turn = std::move(turn_id)](StoreTables& tables) {
        return tables.FindTurn(session, turn);
      },
      std::move(done));
}

void SessionStore::BeginTurn(NewTurn turn, Done<uint32_t> done) {
  Post<uint32_t>(
      Kind::kWrite,
      [turn = std::move(turn)](StoreTables& tables) {
        return tables.InsertTurn(turn, NowMicros());
      },
      std::move(done));
}

void SessionStore::RestartTurn(NewTurn turn, Done<uint32_t> done) {
  Post<uint32_t>(
      Kind::kWrite,
      [turn = std::move(turn)](StoreTables& tables) {
        return tables.RestartTurn(turn, NowMicros());
      },
      std::move(done));
}

void SessionStore::NoteTries(std::string session_id, std::string turn_id, uint32_t tries,
                             std::vector<uint64_t> taken_up,
                             std::function<void(absl::Status)> done) {
  Post(Job{[session = std::move(session_id), turn = std::move(turn_id), tries,
            taken_up = std::move(taken_up)](StoreTables& tables) {
             return tables.SetTries(session, turn, tries, taken_up);
           },
           std::move(done)},
       Place::kReserved);
}

void SessionStore::FinishTurn(TurnResult result, std::function<void(absl::Status)> done) {
  Post(Job{[result = std::move(result)](StoreTables& tables) {
             return tables.EndTurn(result, NowMicros());
           },
           std::move(done)},
       Place::kReserved);
}

}  // namespace llava
