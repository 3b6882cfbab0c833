#pragma once

// Where the elements of a large JSON array lie: data files are never in memory as a whole.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace llava {

// The elements of a file that holds one JSON array of objects, by number from 0. Memory: 16 bytes
// an element. Const after construction, thread-safe; the file must not change meanwhile.
class RecordIndex {
 public:
  // Scans the file once. An element with broken syntax (a bracket or quote too few, a comma
  // missing, the file's end within it) spoils itself alone: the scan goes on at the next thing
  // that begins like a record, an object whose first key is "id", "image" or "conversations".
  // Throws std::runtime_error naming the file if it cannot be read or holds no array.
  explicit RecordIndex(const std::filesystem::path& path);
  ~RecordIndex();
  RecordIndex(const RecordIndex&) = delete;
  RecordIndex& operator=(const RecordIndex&) = delete;

  const std::filesystem::path& path() const { return path_; }
  int64_t size() const { return static_cast<int64_t>(places_.size()); }
  // Text of an element. Throws std::runtime_error if the file has become shorter.
  std::string Read(int64_t number) const;
  // What is wrong with an element's syntax as far as the scan saw it: at least all that keeps it
  // from being told apart from its neighbours. Empty: nothing.
  std::string FaultOf(int64_t number) const;

 private:
  class Scanner;
  struct Place {
    uint64_t offset, size;
  };
  std::filesystem::path path_;
  int file_ = -1;
  std::vector<Place> places_;
  std::map<int64_t, std::string> faults_;
};

}  // namespace llava
