#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/mapped_file.h"
#include "model/checkpoint/read_buffers.h"
#include "model/digest/sha256.h"

namespace llava {

// Reads the files of a version, each once, by several threads, and compares them with the manifest:
// SHA-256, and no weight is NaN or infinite. What is kept in memory may be read as soon as its own
// file is right (Await), so that reading goes on beside; it may be used when all are (Finish).
// Where one thread hashes many files faster than a few (Sha256::MostTogether) and there are many,
// it reads them side by side. Thread-safe.
class FileChecker {
 public:
  struct File {
    std::string name;
    uint64_t size_bytes = 0;
    Sha256Digest sha256{};
    // The file, if it is to be in memory for those who wait for it; null: the bytes only go by.
    std::shared_ptr<const MappedFile> mapped = nullptr;
    std::vector<uint8_t> head = {};  // how it began when somebody looked at it before
  };

  // Begins to read: files without memory, then some of the others, in their order, ahead of those
  // who wait for them. `options`: progress, stop, bytes_per_second, threads, side_by_side.
  FileChecker(std::filesystem::path folder, std::vector<File> files, const OpenOptions& options);
  ~FileChecker();
  FileChecker(const FileChecker&) = delete;
  FileChecker& operator=(const FileChecker&) = delete;

  // The bytes of file number `file`, which has a mapping: when it is right, from memory; later,
  // when they have been given back, from the file. Throws std::runtime_error listing
  // all that is wrong with any of them, naming the path that cannot be read; OpenStopped.
  std::shared_ptr<const MappedFile> Await(size_t file);
  // `bytes` of it will not be asked for soon: when that is most of it, its memory is given back as
  // soon as nobody has a view of it, and another one is read.
  void Released(size_t file, uint64_t bytes);
  // Returns when all files are right; `options` are not called any more. Throws as Await.
  void Finish();

 private:
  enum class State : uint8_t { kWaiting, kReading, kChecked };
  struct Progress {
    State state = State::kWaiting;
    bool wanted = false;
    uint64_t unreleased = 0;
    bool spent = false;
    std::shared_ptr<const MappedFile> memory = nullptr;  // while it is kept there
  };
  struct Task {
    size_t file;
    bool keep;  // in memory
  };

  // A file that is being read.
  class Lane;

  void Run();
  // Waits, if `wait`, until there is one or nothing more to do.
  std::optional<Task> NextTask(bool wait);
  std::optional<size_t> Choose() const;
  // Reads on in all of them, and takes out those that have ended.
  void Step(std::vector<std::unique_ptr<Lane>>& lanes);
  void Ended(Lane& lane);
  void Advance(uint64_t bytes);
  void CheckStop();
  bool bad() const { return !differences_.empty() || !not_finite_.empty(); }
  [[noreturn]] void ThrowWhatIsWrong() const;

  const std::filesystem::path folder_;
  const std::vector<File> files_;
  uint64_t total_bytes_ = 0;
  size_t lanes_ = 1;      // files that a thread reads side by side
  size_t most_held_ = 0;  // files in memory, if nobody asks for more
  const std::shared_ptr<ReadBuffers> buffers_ = ReadBuffers::Create();

  std::mutex callbacks_;  // of options_: one call at a time. Guards options_, done_bytes_, stopped_
  OpenOptions options_;
  uint64_t done_bytes_ = 0;
  bool stopped_ = false;
  std::chrono::steady_clock::time_point begin_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Progress> progress_;  // by file; guarded by mutex_, as are those below
  uint64_t waiting_bytes_ = 0;
  size_t checked_ = 0;
  bool finishing_ = false;
  std::exception_ptr error_;
  std::map<std::string, std::string> differences_;  // by file
  std::map<std::string, uint64_t> not_finite_;      // by tensor

  std::mutex joining_;
  std::vector<std::thread> threads_;
};

}  // namespace llava
