#include "tests/model/data/instructions/scratch_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <fstream>

namespace llava {

ScratchFolder::ScratchFolder() {
  static std::atomic<int> number = 0;
  path_ = std::filesystem::path(testing::TempDir()) /
          ("instructions_" + std::to_string(getpid()) + "_" + std::to_string(number++));
  std::filesystem::remove_all(path_);
  std::filesystem::create_directories(path_);
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path ScratchFolder::Write(const std::string& name,
                                           std::string_view content) const {
  const auto file = path_ / name;
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << content;
  return file;
}

}  // namespace llava
