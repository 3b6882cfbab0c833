#include "server/gateway/answer_journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/gateway/file_io.h"
#include "server/runtime/failpoint.h"
#include "server/runtime/logging.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

constexpr char kSuffix[] = ".log";

std::optional<uint64_t> NumberOf(const fs::path& path) {
  if (path.extension() != kSuffix) return std::nullopt;
  const std::string stem = path.stem().string();
  uint64_t number = 0;
  const auto parsed = std::from_chars(stem.data(), stem.data() + stem.size(), number);
  if (parsed.ec != std::errc() || parsed.ptr != stem.data() + stem.size()) return std::nullopt;
  return number;
}

// The answers that live in the files of an earlier process.
class Recovery {
 public:
  // FAILED_PRECONDITION: another version of the format. Else: it cannot be read, and must stay.
  absl::Status Read(const fs::path& path) {
    const auto bytes = ReadFile(path);
    if (!bytes.ok()) return bytes.status();
    std::string_view rest = *bytes;
    if (!rest.starts_with(kJournalMagic) && !rest.starts_with(kOldJournalMagic)) {
      if (rest.size() >= kJournalMagic.size() && rest.starts_with(kJournalMagic.substr(0, 6))) {
        return absl::FailedPreconditionError(
            absl::StrCat(path.string(), " was written by another version of llava-gateway; start ",
                         "that one, or remove the file: its answers are then made anew"));
      }
      rest = {};  // torn when it was made
    } else {
      rest.remove_prefix(kJournalMagic.size());
      while (auto record = TakeRecord(rest)) Apply(*std::move(record));
    }
    if (!rest.empty()) {
      LogWarning("journal cut at its last whole record",
                 {{"file", path.string()}, {"bytes", absl::StrCat(rest.size())}});
    }
    return absl::OkStatus();
  }

  std::vector<JournalledAnswer> Take() {
    std::vector<JournalledAnswer> answers;
    for (auto& [id, answer] : answers_) answers.push_back(std::move(answer));
    return answers;
  }
  uint64_t last_id() const { return last_id_; }

 private:
  void Apply(JournalRecord record) {
    last_id_ = std::max(last_id_, record.id);
    if (record.kind == JournalRecord::Kind::kAnswer) {
      if (const auto old = by_turn_.find(record.answer.turn_id); old != by_turn_.end()) {
        answers_.erase(old->second);
      }
      by_turn_[record.answer.turn_id] = record.id;
      record.answer.id = record.id;
      answers_[record.id] = std::move(record.answer);
      return;
    }
    const auto found = answers_.find(record.id);
    if (found == answers_.end()) return;
    JournalledAnswer& answer = found->second;
    switch (record.kind) {
      case JournalRecord::Kind::kText:
        // Behind a damaged record there may be a gap: what is beyond cannot be used.
        if (record.offset != answer.text.size() ||
            static_cast<int>(record.token_offset) != answer.tokens.ids_size() ||
            gaps_.contains(record.id)) {
          gaps_.insert(record.id);
          break;
        }
        answer.text += record.text;
        answer.tokens.mutable_ids()->Add(record.token_ids.begin(), record.token_ids.end());
        break;
      case JournalRecord::Kind::kDeath:
        ++answer.deaths;
        break;
      default:
        answers_.erase(found);
        break;
    }
  }

  std::map<uint64_t, JournalledAnswer> answers_;
  std::map<std::string, uint64_t> by_turn_;
  std::set<uint64_t> gaps_;
  uint64_t last_id_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AnswerJournal>> AnswerJournal::Open(const fs::path& folder,
                                                                   GatewayMetrics& metrics,
                                                                   uint64_t segment_bytes) {
  if (auto status = MakePrivateFolder(folder); !status.ok()) return status;
  std::unique_ptr<AnswerJournal> journal(new AnswerJournal(folder, segment_bytes, metrics));
  if (auto status = journal->Recover(); !status.ok()) return status;
  journal->thread_ = std::thread([raw = journal.get()] { raw->Loop(); });
  return journal;
}

absl::Status AnswerJournal::Recover() {
  std::error_code error;
  std::set<uint64_t> numbers;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    if (const auto number = NumberOf(entry.path())) numbers.insert(*number);
  }
  if (error) return FileError("list", folder_, error.value());
  Recovery recovery;
  for (const uint64_t number : numbers) {
    if (auto status = recovery.Read(PathOf(number)); !status.ok()) return status;
  }
  recovered_ = recovery.Take();
  {
    // New ids, so that files which a crash leaves beside the new one cannot speak of them.
    MutexLock lock(mutex_);
    next_id_ = recovery.last_id() + 1;
    for (JournalledAnswer& answer : recovered_) {
      answer.id = next_id_++;
      answer.taken_up.push_back(answer.text.size());
    }
  }
  if (auto status = BeginAnew(numbers.empty() ? 1 : *numbers.rbegin() + 1); !status.ok()) {
    return status;
  }
  for (const uint64_t number : numbers) {
    fs::remove(PathOf(number), error);
    if (error) return FileError("remove", PathOf(number), error.value());
  }
  return absl::OkStatus();
}

absl::Status AnswerJournal::BeginAnew(uint64_t number) {
  std::string bytes(kJournalMagic);
  for (const JournalledAnswer& answer : recovered_) bytes += EncodeAnswer(answer);
  auto status = WriteFileDurably(PathOf(number), bytes);
  if (!status.ok()) return status;
  file_ = open(PathOf(number).c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file_ < 0) return FileError("open", PathOf(number), errno);
  file_bytes_ = bytes.size();
  segments_.push_back({number, recovered_.size()});
  for (const JournalledAnswer& answer : recovered_) begun_in_[answer.id] = number;
  return absl::OkStatus();
}

AnswerJournal::~AnswerJournal() {
  {
    MutexLock lock(mutex_);
    closing_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) {
    thread_.join();
    if (Batch last; !unwritten_ends_.empty()) WriteAndTell(last);
  }
  CloseSegment();
}

fs::path AnswerJournal::PathOf(uint64_t number) const {
  return folder_ / (absl::StrFormat("%016u", number) + kSuffix);
}

absl::Status AnswerJournal::OpenSegment(uint64_t number) {
  CloseSegment();
  const fs::path path = PathOf(number);
  file_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file_ < 0) return FileError("create", path, errno);
  if (auto status = WriteAll(file_, kJournalMagic, path); !status.ok()) {
    CloseSegment();
    return status;
  }
  file_bytes_ = kJournalMagic.size();
  segments_.push_back({number, 0});
  return absl::OkStatus();
}

void AnswerJournal::CloseSegment() {
  if (file_ >= 0) close(file_);
  file_ = -1;
}

uint64_t AnswerJournal::Begin(JournalledAnswer answer, Done done) {
  {
    MutexLock lock(mutex_);
    answer.id = next_id_++;
  }
  Enqueue(EncodeAnswer(answer), std::move(done), /*begun=*/answer.id);
  return answer.id;
}

void AnswerJournal::Append(uint64_t id, const JournalText& piece, Done done) {
  Enqueue(EncodeText(id, piece), std::move(done));
}

void AnswerJournal::NoteDeath(uint64_t id) { Enqueue(EncodeDeath(id), {}); }

void AnswerJournal::End(uint64_t id) { Enqueue(EncodeEnd(id), {}, 0, /*ended=*/id); }

void AnswerJournal::Flush(Done done) { Enqueue("", std::move(done)); }

void AnswerJournal::BeginFile() { Enqueue("", {}, 0, 0, /*new_file=*/true); }

void AnswerJournal::Enqueue(std::string record, Done done, uint64_t begun, uint64_t ended,
                            bool new_file) {
  Batch batch;
  {
    MutexLock lock(mutex_);
    if (waiting_.bytes.empty()) {
      waiting_.bytes = std::move(record);
    } else {
      waiting_.bytes += record;
    }
    if (done) waiting_.done.push_back(std::move(done));
    if (begun != 0) waiting_.begun.push_back(begun);
    if (ended != 0) waiting_.ended.push_back(ended);
    waiting_.new_file |= new_file;
    if (writing_) return;
    writing_ = true;  // quicker than to wake a thread for it
    std::swap(batch, waiting_);
  }
  WriteAndTell(batch);
  MutexLock lock(mutex_);
  writing_ = false;
  if (!waiting_.empty() || closing_) changed_.NotifyAll();
}

void AnswerJournal::Loop() {
  while (true) {
    Batch batch;
    {
      MutexLock lock(mutex_);
      while (writing_ || (waiting_.empty() && !closing_)) changed_.Wait(mutex_);
      if (waiting_.empty()) return;
      writing_ = true;
      std::swap(batch, waiting_);
    }
    WriteAndTell(batch);
    MutexLock lock(mutex_);
    writing_ = false;
  }
}

void AnswerJournal::WriteAndTell(Batch& batch) {
  for (const uint64_t id : unwritten_ends_) {
    batch.bytes += EncodeEnd(id);
    batch.ended.push_back(id);
  }
  unwritten_ends_.clear();
  const absl::Status status = WriteBatch(batch.bytes);
  (void)LLAVA_FAILPOINT("journal.written");
  if (status.ok()) {
    Account(batch);
  } else {  // else their files would stay, and all behind them
    unwritten_ends_ = std::move(batch.ended);
  }
  for (const Done& done : batch.done) done(status);
  if (batch.new_file && file_bytes_ > kJournalMagic.size()) {
    if (auto opened = OpenSegment(segments_.back().number + 1); !opened.ok()) {
      LogWarning("journal not begun anew", {{"error", std::string(opened.message())}});
    }
  }
  RemoveDeadSegments();
}

absl::Status AnswerJournal::WriteBatch(const std::string& bytes) {
  if (bytes.empty()) return absl::OkStatus();
  const auto start = std::chrono::steady_clock::now();
  absl::Status status;
  if (file_ < 0 || file_bytes_ >= segment_bytes_) status = OpenSegment(segments_.back().number + 1);
  if (status.ok()) status = LLAVA_FAILPOINT("journal.write");
  if (status.ok()) status = WriteAll(file_, bytes, folder_);
  if (status.ok()) {
    file_bytes_ += bytes.size();
    metrics_.journal_bytes_total.Increment(static_cast<double>(bytes.size()));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    metrics_.journal_write_seconds.Observe(took.count());
    return status;
  }
  LogError("journal not written", {{"error", std::string(status.message())}});
  metrics_.store_failures_total.Increment();
  // Half a batch would hide all that is written behind it: off with it, or on to another file.
  if (file_ >= 0 && ftruncate(file_, static_cast<off_t>(file_bytes_)) != 0) CloseSegment();
  return status;
}

void AnswerJournal::Account(const Batch& batch) {
  for (const uint64_t id : batch.begun) {
    begun_in_[id] = segments_.back().number;
    ++segments_.back().live;
  }
  for (const uint64_t id : batch.ended) {
    const auto found = begun_in_.find(id);
    if (found == begun_in_.end()) continue;
    const auto segment = std::find_if(segments_.begin(), segments_.end(), [&](const Segment& each) {
      return each.number == found->second;
    });
    --segment->live;
    begun_in_.erase(found);
  }
}

// From the front: a later file may hold more of an answer that began in an earlier one.
void AnswerJournal::RemoveDeadSegments() {
  while (segments_.size() > 1 && segments_.front().live == 0) {
    std::error_code error;
    fs::remove(PathOf(segments_.front().number), error);
    if (error) LogWarning("journal file stays", {{"error", error.message()}});
    segments_.pop_front();
  }
}

}  // namespace llava
