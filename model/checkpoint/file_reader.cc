#include "model/checkpoint/file_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace llava {
namespace {

constexpr size_t kAlignment = 4096;  // of memory and places, for reads past the page cache

[[noreturn]] void Fail(const std::filesystem::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what);
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags)
      : fd_(open(path.c_str(), flags | O_CLOEXEC)) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// What the page cache holds of a file.
class Cached {
 public:
  Cached(int fd, uint64_t size) : size_(size) {
    if (size > 0) view_ = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  }
  ~Cached() {
    if (view_ != MAP_FAILED) munmap(view_, size_);
  }
  Cached(const Cached&) = delete;
  Cached& operator=(const Cached&) = delete;

  // Whether all of a chunk is there.
  bool Has(uint64_t offset, size_t count) const {
    if (view_ == MAP_FAILED) return false;
    std::vector<uint8_t> pages((count + kAlignment - 1) / kAlignment);
    if (mincore(static_cast<uint8_t*>(view_) + offset, count, pages.data()) != 0) return false;
    return std::all_of(pages.begin(), pages.end(), [](uint8_t page) { return (page & 1) != 0; });
  }

 private:
  const uint64_t size_;
  void* view_ = MAP_FAILED;
};

}  // namespace

size_t FileReader::MemoryBytes(uint64_t size, Into into) {
  const uint64_t chunks = size / kChunkBytes + 1;
  return (into == Into::kWindow ? std::min(kAhead, chunks) : chunks) * kChunkBytes;
}

FileReader::FileReader(std::filesystem::path path, uint64_t size, Into into,
                       std::shared_ptr<uint8_t> memory)
    : path_(std::move(path)),
      size_(size),
      into_(into),
      memory_(std::move(memory)),
      may_read_(kAhead),
      thread_([this] { Run(); }) {}

FileReader::~FileReader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint8_t* FileReader::Place(uint64_t chunk) const {
  return memory_.get() + (into_ == Into::kWindow ? chunk % kAhead : chunk) * kChunkBytes;
}

std::span<const uint8_t> FileReader::Next(const std::function<void()>& waiting) {
  const uint64_t offset = taken_ * kChunkBytes;
  std::unique_lock lock(mutex_);
  may_read_ = taken_ + kAhead;  // what was given out before is free now
  changed_.notify_all();
  if (offset >= size_) {
    // The thread looks last whether the file goes on.
    changed_.wait(lock, [&] { return stop_ || error_; });
    if (error_) std::rethrow_exception(error_);
    return {};
  }
  while (read_ <= taken_ && !error_) {
    if (changed_.wait_for(lock, std::chrono::milliseconds(20)) == std::cv_status::timeout) {
      lock.unlock();
      waiting();
      lock.lock();
    }
  }
  if (read_ <= taken_) std::rethrow_exception(error_);
  return {Place(taken_++), static_cast<size_t>(std::min<uint64_t>(kChunkBytes, size_ - offset))};
}

void FileReader::Read(int fd, int direct, uint64_t offset, size_t count, uint8_t* to) const {
  size_t have = 0;
  if (direct >= 0) {
    while (have < count) {
      // Whole blocks: the last one reaches over the end, into the memory behind.
      const size_t whole = (count - have + kAlignment - 1) / kAlignment * kAlignment;
      const ssize_t got = pread(direct, to + have, whole, static_cast<off_t>(offset + have));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;  // what is odd about it the other way of reading tells
      have = std::min(count, have + static_cast<size_t>(got));
      if (have % kAlignment != 0) break;
    }
  }
  while (have < count) {
    const ssize_t got = pread(fd, to + have, count - have, static_cast<off_t>(offset + have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) Fail(path_, std::string("cannot read: ") + std::strerror(errno));
    if (got == 0) {
      Fail(path_, "ends after " + std::to_string(offset + have) + " bytes, expected " +
                      std::to_string(size_));
    }
    have += static_cast<size_t>(got);
  }
}

void FileReader::Run() {
  try {
    const Descriptor file(path_, O_RDONLY);
    if (file.get() < 0) Fail(path_, std::string("cannot open: ") + std::strerror(errno));
    // Refused where a file system has none: then all goes the other way.
    const bool window = into_ == Into::kWindow;
    const Descriptor direct(path_, window ? O_PATH : O_RDONLY | O_DIRECT);
    const int past_cache = window ? -1 : direct.get();
    const Cached cached(file.get(), past_cache < 0 ? 0 : size_);
    if (past_cache < 0) posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
    for (uint64_t chunk = 0; chunk * kChunkBytes < size_; ++chunk) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || chunk < may_read_; });
        if (stop_) return;
      }
      const uint64_t offset = chunk * kChunkBytes;
      const auto count = static_cast<size_t>(std::min<uint64_t>(kChunkBytes, size_ - offset));
      Read(file.get(), cached.Has(offset, count) ? -1 : past_cache, offset, count, Place(chunk));
      const std::lock_guard lock(mutex_);
      read_ = chunk + 1;
      changed_.notify_all();
    }
    uint8_t more;
    if (pread(file.get(), &more, 1, static_cast<off_t>(size_)) > 0) {
      Fail(path_, "goes on after the " + std::to_string(size_) + " bytes that are expected");
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
  const std::lock_guard lock(mutex_);
  stop_ = true;
  changed_.notify_all();
}

}  // namespace llava
