#pragma once

// A file that is either whole or not there.

#include <filesystem>
#include <fstream>
#include <string_view>

namespace llava {

// Written as <path>.part and renamed by Commit; removed by the destructor if it was not committed.
// All throw std::runtime_error naming the path and the system's reason (a full disk, for one). One
// thread.
class StagedFile {
 public:
  explicit StagedFile(std::filesystem::path path);
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  void Write(std::string_view bytes);
  void Commit();

 private:
  [[noreturn]] void Fail(const char* what) const;

  std::filesystem::path path_, part_;
  std::ofstream file_;
  bool committed_ = false;
};

}  // namespace llava
