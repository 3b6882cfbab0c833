#include "model/checkpoint/file_checker.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <span>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/file_reader.h"
#include "model/checkpoint/finite.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Both looks at a piece find it in the second cache, also where there are as many as lanes.
constexpr size_t kPiece = size_t{64} << 10;
constexpr size_t kBlock = 64;  // of SHA-256
// More threads than that read faster than any disk.
constexpr int kMostThreads = 16;
// At least so many files are in memory beside those that are read: one is packed, another is ready.
constexpr size_t kAhead = 2;
// A thread takes many files side by side where there are so many times as many, so that some are
// there early.
constexpr size_t kRounds = 4;
// A file of which less is left (tensors that nobody asks for or releases) takes no place.
constexpr uint64_t kSpentPart = 16;

int ThreadsOf(const OpenOptions& options) {
  if (options.threads > 0) return options.threads;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

}  // namespace

class FileChecker::Lane {
 public:
  Lane(FileChecker& checker, const Task& task)
      : task_(task),
        file_(checker.files_[task.file]),
        path_(checker.folder_ / file_.name),
        tensors_(path_.extension() == ".safetensors"),
        memory_(checker.buffers_->Take(FileReader::MemoryBytes(file_.size_bytes, into()))),
        reader_(path_, file_.size_bytes, into(), memory_),
        finite_(file_.size_bytes) {}

  // Goes on when the last chunk is used up; false: the file has ended. `waiting`: as
  // FileReader::Next.
  bool Fill(const std::function<void()>& waiting) {
    if (!left_.empty()) return true;
    left_ = chunk_ = reader_.Next(waiting);
    const auto head = static_cast<ptrdiff_t>(std::min(file_.head.size() - same_, chunk_.size()));
    as_before_ = as_before_ && std::equal(chunk_.begin(), chunk_.begin() + head,
                                          file_.head.begin() + static_cast<ptrdiff_t>(same_));
    same_ += static_cast<size_t>(head);
    return !chunk_.empty();
  }
  // The next `size` bytes have been hashed. Returns how many bytes of a chunk that ends with them.
  size_t Hashed(size_t size) {
    if (tensors_) finite_.Feed(left_.first(size));
    left_ = left_.subspan(size);
    return left_.empty() ? chunk_.size() : 0;
  }

  const Task& task() const { return task_; }
  const File& file() const { return file_; }
  std::span<const uint8_t> left() const { return left_; }  // of the chunk
  Sha256& hash() { return hash_; }
  const FiniteCheck& finite() const { return finite_; }
  bool as_before() const { return as_before_; }
  // All bytes of the file; null if they only went by.
  std::shared_ptr<const MappedFile> Memory() const {
    if (!task_.keep) return nullptr;
    return std::make_shared<const MappedFile>(path_, memory_, file_.size_bytes);
  }

 private:
  FileReader::Into into() const {
    return task_.keep ? FileReader::Into::kMemory : FileReader::Into::kWindow;
  }

  const Task task_;
  const File& file_;
  const fs::path path_;
  const bool tensors_;
  const std::shared_ptr<uint8_t> memory_;
  FileReader reader_;
  std::span<const uint8_t> chunk_, left_;
  Sha256 hash_;
  FiniteCheck finite_;
  size_t same_ = 0;  // bytes of the head
  bool as_before_ = true;
};

FileChecker::FileChecker(fs::path folder, std::vector<File> files, const OpenOptions& options)
    : folder_(std::move(folder)),
      files_(std::move(files)),
      options_(options),
      begin_(Clock::now()),
      progress_(files_.size()) {
  for (size_t i = 0; i < files_.size(); ++i) {
    progress_[i].unreleased = files_[i].size_bytes;
    total_bytes_ += files_[i].size_bytes;
  }
  waiting_bytes_ = total_bytes_;
  size_t threads = std::min(files_.size(), static_cast<size_t>(ThreadsOf(options)));
  // One thread with many lanes hashes about as fast as two with one; with more threads than that
  // would make use of, one file for each is faster.
  const auto together = static_cast<size_t>(Sha256::MostTogether());
  if (options.side_by_side && together > 1 && threads <= 2 * (files_.size() / kRounds / together)) {
    lanes_ = together;
    threads = (threads + 1) / 2;
  }
  most_held_ = threads * lanes_ + std::max(kAhead, lanes_ / 2);
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

FileChecker::~FileChecker() {
  {
    const std::lock_guard lock(callbacks_);
    stopped_ = true;
  }
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::make_exception_ptr(OpenStopped("nobody waits for it"));
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void FileChecker::Run() {
  try {
    std::vector<std::unique_ptr<Lane>> lanes;
    for (;;) {
      while (lanes.size() < lanes_) {
        const auto task = NextTask(lanes.empty());
        if (!task) break;
        lanes.push_back(std::make_unique<Lane>(*this, *task));
      }
      if (lanes.empty()) break;
      Step(lanes);
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
  changed_.notify_all();
}

std::optional<size_t> FileChecker::Choose() const {
  size_t held = 0;
  for (size_t i = 0; i < files_.size(); ++i) {
    const Progress& progress = progress_[i];
    held += files_[i].mapped && progress.state != State::kWaiting && !progress.spent ? 1 : 0;
  }
  std::optional<size_t> first;
  bool large = false;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (progress_[i].state != State::kWaiting) continue;
    if (progress_[i].wanted) return i;
    const bool may = !files_[i].mapped || finishing_ || bad() || held < most_held_;
    // One that keeps a lane busy for as long as all that is left: it would be alone at the end.
    const bool longest = lanes_ > 1 && files_[i].size_bytes > waiting_bytes_ / lanes_;
    if (may && (!first || (longest && !large))) {
      first = i;
      large = longest;
    }
  }
  return first;
}

std::optional<FileChecker::Task> FileChecker::NextTask(bool wait) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (error_) return std::nullopt;
    if (const auto file = Choose()) {
      Progress& progress = progress_[*file];
      progress.state = State::kReading;
      waiting_bytes_ -= files_[*file].size_bytes;
      buffers_->Keep(waiting_bytes_);
      // Where there is something wrong, or nobody asked so far, nobody will.
      return Task{*file, files_[*file].mapped && !bad() && (progress.wanted || !finishing_)};
    }
    const bool any = std::any_of(progress_.begin(), progress_.end(), [](const Progress& progress) {
      return progress.state == State::kWaiting;
    });
    if (!any || !wait) return std::nullopt;
    changed_.wait(lock);
  }
}

void FileChecker::Step(std::vector<std::unique_ptr<Lane>>& lanes) {
  std::erase_if(lanes, [this](const std::unique_ptr<Lane>& lane) {
    if (lane->Fill([this] { CheckStop(); })) return false;
    Ended(*lane);
    return true;
  });
  std::vector<Sha256*> hashes;
  std::vector<const uint8_t*> data;
  size_t size = kPiece;
  for (const auto& lane : lanes) {
    hashes.push_back(&lane->hash());
    data.push_back(lane->left().data());
    size = std::min(size, lane->left().size());
  }
  // Whole blocks; what is less, at the end of a file, goes alone, so that the others stay aligned.
  size = size / kBlock * kBlock;
  if (size > 0) Sha256::UpdateTogether(hashes, data, size);
  for (const auto& lane : lanes) {
    const std::span<const uint8_t> left = lane->left();
    if (size == 0 && left.size() >= kBlock) continue;
    if (size == 0) lane->hash().Update(left);
    const size_t chunk = lane->Hashed(size > 0 ? size : left.size());
    if (chunk > 0) Advance(chunk);
  }
}

void FileChecker::Ended(Lane& lane) {
  const bool right = lane.hash().Finish() == lane.file().sha256;
  {
    const std::lock_guard lock(mutex_);
    Progress& progress = progress_[lane.task().file];
    progress.state = State::kChecked;
    if (!progress.spent) progress.memory = lane.Memory();
    ++checked_;
    if (!right) {
      differences_[lane.file().name] = "has another SHA-256";
    } else if (!lane.as_before()) {
      differences_[lane.file().name] = "changed while it was read";
    }
    not_finite_.insert(lane.finite().counts().begin(), lane.finite().counts().end());
  }
  changed_.notify_all();
}

void FileChecker::CheckStop() {
  const std::lock_guard lock(callbacks_);
  stopped_ = stopped_ || (options_.stop && options_.stop());
  if (stopped_) throw OpenStopped(folder_.string() + ": reading it was stopped");
}

void FileChecker::Advance(uint64_t bytes) {
  CheckStop();
  auto due = begin_;
  {
    const std::lock_guard lock(callbacks_);
    done_bytes_ += bytes;
    const auto done = static_cast<double>(done_bytes_);
    if (options_.progress) options_.progress(done / static_cast<double>(total_bytes_));
    if (options_.bytes_per_second <= 0) return;
    due += std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(done / options_.bytes_per_second));
  }
  for (auto now = Clock::now(); now < due; now = Clock::now()) {
    std::this_thread::sleep_for(
        std::min<Clock::duration>(due - now, std::chrono::milliseconds(20)));
    CheckStop();
  }
}

void FileChecker::ThrowWhatIsWrong() const {
  if (differences_.empty()) {
    throw std::runtime_error(folder_.string() + ": " + DescribeNonFinite(not_finite_));
  }
  std::string text;
  for (const auto& [name, what] : differences_) {
    text += (text.empty() ? "" : "; ") + name + " " + what;
  }
  throw std::runtime_error(folder_.string() + ": is not what its manifest says: " + text);
}

std::shared_ptr<const MappedFile> FileChecker::Await(size_t file) {
  std::unique_lock lock(mutex_);
  Progress& progress = progress_[file];
  progress.wanted = true;
  changed_.notify_all();
  changed_.wait(lock, [&] {
    return error_ || (bad() ? checked_ == files_.size() : progress.state == State::kChecked);
  });
  if (error_) std::rethrow_exception(error_);
  if (bad()) ThrowWhatIsWrong();
  return progress.memory ? progress.memory : files_[file].mapped;
}

void FileChecker::Released(size_t file, uint64_t bytes) {
  std::shared_ptr<const MappedFile> memory;  // given back without the lock
  {
    const std::lock_guard lock(mutex_);
    Progress& progress = progress_[file];
    progress.unreleased -= std::min(progress.unreleased, bytes);
    progress.spent = progress.unreleased <= files_[file].size_bytes / kSpentPart;
    if (!progress.spent) return;
    memory = std::exchange(progress.memory, nullptr);
  }
  memory.reset();
  changed_.notify_all();
}

void FileChecker::Finish() {
  {
    std::unique_lock lock(mutex_);
    finishing_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return error_ || checked_ == files_.size(); });
    if (error_) std::rethrow_exception(error_);
    if (bad()) ThrowWhatIsWrong();
  }
  const std::lock_guard lock(joining_);
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  const std::lock_guard callbacks(callbacks_);
  options_ = {};
}

}  // namespace llava
