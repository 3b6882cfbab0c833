#pragma once

// Answers in the making, on disk before any client sees them.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/gateway/gateway_metrics.h"
#include "server/gateway/journal_records.h"
#include "server/runtime/mutex.h"

namespace llava {

// Append-only files, so that a process killed at any moment loses nothing that it has told. Who
// comes while nobody writes, writes at once, on its own thread; what comes meanwhile goes with the
// next write, over all answers together, on a thread of the journal. Written means handed to the
// kernel: it survives the process, not the machine. No sync: the end of an answer is made durable
// by the store's commit.
//
// Thread-safe. Callbacks run in the order of the calls, within the call or on the journal's thread,
// and must not block. DiskFull (file_io.h) when the disk is, INTERNAL for other faults of it;
// nothing of such a batch is kept but the ends of answers, which go with the next one. The
// destructor writes all that waits.
class AnswerJournal {
 public:
  using Done = std::function<void(const absl::Status&)>;

  // Makes the folder; reads what an earlier process left, up to the first torn or damaged record of
  // each file, and writes what still lives to a new file. The caller holds the lock of the folder
  // above. FAILED_PRECONDITION: files of another version.
  static absl::StatusOr<std::unique_ptr<AnswerJournal>> Open(const std::filesystem::path& folder,
                                                             GatewayMetrics& metrics,
                                                             uint64_t segment_bytes = 8u << 20);
  ~AnswerJournal();

  // What Open found, oldest first. They live on under their ids until End.
  std::vector<JournalledAnswer> TakeRecovered() { return std::move(recovered_); }

  // A new answer with what there is of it; returns its id (`answer.id` is ignored). An earlier
  // answer of the same turn is forgotten.
  uint64_t Begin(JournalledAnswer answer, Done done);
  // More of an answer.
  void Append(uint64_t id, const JournalText& piece, Done done);
  // A worker died over it.
  void NoteDeath(uint64_t id);
  // The store has it, or nobody wants it.
  void End(uint64_t id);
  // Runs `done` behind all that came before.
  void Flush(Done done);
  // What has ended shall leave the disk: goes on in a new file, so that the one up to here can go
  // as soon as nothing in it lives.
  void BeginFile();

 private:
  // What goes with one write.
  struct Batch {
    std::string bytes;
    std::vector<Done> done;
    std::vector<uint64_t> begun, ended;
    bool new_file = false;

    bool empty() const { return bytes.empty() && done.empty() && !new_file; }
  };
  struct Segment {
    uint64_t number = 0;
    size_t live = 0;  // answers that began in it
  };

  AnswerJournal(std::filesystem::path folder, uint64_t segment_bytes, GatewayMetrics& metrics)
      : folder_(std::move(folder)), segment_bytes_(segment_bytes), metrics_(metrics) {}

  absl::Status Recover();
  // Writes all of recovered_ to a segment of its own and makes it the current one.
  absl::Status BeginAnew(uint64_t number);
  std::filesystem::path PathOf(uint64_t number) const;
  absl::Status OpenSegment(uint64_t number);
  void CloseSegment();

  void Enqueue(std::string record, Done done, uint64_t begun = 0, uint64_t ended = 0,
               bool new_file = false);
  void Loop();
  // Of whoever has set `writing_`.
  void WriteAndTell(Batch& batch);
  absl::Status WriteBatch(const std::string& bytes);
  void Account(const Batch& batch);
  void RemoveDeadSegments();

  const std::filesystem::path folder_;
  const uint64_t segment_bytes_;
  GatewayMetrics& metrics_;
  std::vector<JournalledAnswer> recovered_;

  // Used by whoever has set `writing_`, after Open.
  int file_ = -1;
  uint64_t file_bytes_ = 0;
  std::deque<Segment> segments_;                     // oldest first, the last one is written to
  std::unordered_map<uint64_t, uint64_t> begun_in_;  // id of a live answer -> its segment
  std::vector<uint64_t> unwritten_ends_;             // go with the next write

  Mutex mutex_;
  CondVar changed_;
  uint64_t next_id_ LLAVA_GUARDED_BY(mutex_) = 1;
  Batch waiting_ LLAVA_GUARDED_BY(mutex_);
  bool writing_ LLAVA_GUARDED_BY(mutex_) = false;
  bool closing_ LLAVA_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace llava
