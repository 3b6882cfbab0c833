#include "model/checkpoint/file_checker.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <stdexcept>
#include <utility>

#include "model/checkpoint/file_reader.h"
#include "model/checkpoint/finite.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Both looks at a piece find it in the second cache.
constexpr size_t kPiece = size_t{256} << 10;
// More threads than that read faster than any disk.
constexpr int kMostThreads = 16;
// Files in memory beside those that threads read: one is packed, another is ready.
constexpr size_t kAhead = 2;
// A file of which less is left (tensors that nobody asks for or releases) takes no place.
constexpr uint64_t kSpentPart = 16;

int ThreadsOf(const OpenOptions& options) {
  if (options.threads > 0) return options.threads;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

}  // namespace

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
  const size_t threads = std::min(files_.size(), static_cast<size_t>(ThreadsOf(options)));
  most_held_ = threads + kAhead;
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
    while (const auto task = NextTask()) Check(*task);
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
    held += files_[i].memory && progress.state != State::kWaiting && !progress.spent ? 1 : 0;
  }
  std::optional<size_t> first;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (progress_[i].state != State::kWaiting) continue;
    if (progress_[i].wanted) return i;
    const bool may = !files_[i].memory || finishing_ || bad() || held < most_held_;
    if (may && !first) first = i;
  }
  return first;
}

std::optional<FileChecker::Task> FileChecker::NextTask() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (error_) return std::nullopt;
    if (const auto file = Choose()) {
      Progress& progress = progress_[*file];
      progress.state = State::kReading;
      // Where there is something wrong, or nobody asked so far, nobody will.
      return Task{*file, files_[*file].memory && !bad() && (progress.wanted || !finishing_)};
    }
    const bool any = std::any_of(progress_.begin(), progress_.end(), [](const Progress& progress) {
      return progress.state == State::kWaiting;
    });
    if (!any) return std::nullopt;
    changed_.wait(lock);
  }
}

void FileChecker::Check(const Task& task) {
  const File& file = files_[task.file];
  const fs::path path = folder_ / file.name;
  const bool tensors = path.extension() == ".safetensors";
  FileReader reader(path, file.size_bytes, task.keep ? file.memory->memory() : nullptr);
  Sha256 hash;
  FiniteCheck finite(file.size_bytes);
  size_t same = 0;  // bytes of the head
  bool as_before = true;
  for (;;) {
    const std::span<const uint8_t> chunk = reader.Next([this] { CheckStop(); });
    if (chunk.empty()) break;
    const size_t head = std::min(file.head.size() - same, chunk.size());
    as_before = as_before && std::equal(chunk.begin(), chunk.begin() + static_cast<ptrdiff_t>(head),
                                        file.head.begin() + static_cast<ptrdiff_t>(same));
    same += head;
    for (size_t from = 0; from < chunk.size(); from += kPiece) {
      const auto piece = chunk.subspan(from, std::min(kPiece, chunk.size() - from));
      hash.Update(piece);
      if (tensors) finite.Feed(piece);
    }
    Advance(chunk.size());
  }
  const bool right = hash.Finish() == file.sha256;
  if (file.memory && !task.keep) file.memory->ReleaseAll();
  {
    const std::lock_guard lock(mutex_);
    progress_[task.file].state = State::kChecked;
    ++checked_;
    if (!right) {
      differences_[file.name] = "has another SHA-256";
    } else if (!as_before) {
      differences_[file.name] = "changed while it was read";
    }
    not_finite_.insert(finite.counts().begin(), finite.counts().end());
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

void FileChecker::Await(size_t file) {
  std::unique_lock lock(mutex_);
  progress_[file].wanted = true;
  changed_.notify_all();
  changed_.wait(lock, [&] {
    return error_ || (bad() ? checked_ == files_.size() : progress_[file].state == State::kChecked);
  });
  if (error_) std::rethrow_exception(error_);
  if (bad()) ThrowWhatIsWrong();
}

void FileChecker::Released(size_t file, uint64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    Progress& progress = progress_[file];
    progress.unreleased -= std::min(progress.unreleased, bytes);
    const bool spent = progress.unreleased <= files_[file].size_bytes / kSpentPart;
    if (!spent || progress.spent) return;
    progress.spent = true;
  }
  files_[file].memory->ReleaseAll();
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
