#pragma once

// Folders for tests: the fixtures, and temporary copies of them that may be spoiled.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "tests/support/paths.h"

namespace llava {

inline std::filesystem::path Fixtures() {
  const char* folder = std::getenv("LLAVA_FIXTURES");
  return folder != nullptr ? folder : SourceDir() + "/tests/fixtures";
}

// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "llava_test_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // Copy of the fixture `name` under the same name.
  std::filesystem::path CopyOf(const std::string& name) const {
    std::filesystem::copy(Fixtures() / name, path_ / name,
                          std::filesystem::copy_options::recursive);
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string ReadBytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void WriteBytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline void EditJson(const std::filesystem::path& path,
                     const std::function<void(nlohmann::json&)>& edit) {
  auto value = nlohmann::json::parse(ReadBytes(path));
  edit(value);
  WriteBytes(path, value.dump());
}

// What the call throws, "" if nothing.
template <typename Call>
std::string ErrorOf(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace llava
