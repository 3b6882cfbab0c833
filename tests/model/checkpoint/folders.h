#pragma once

// Copies of the fixtures that may be spoiled.

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {

// Copy of the fixture `name` under the same name in a folder.
inline std::filesystem::path CopyOf(const std::string& name, const TempFolder& folder) {
  std::filesystem::copy(FixturesDir() / name, folder.path() / name,
                        std::filesystem::copy_options::recursive);
  return folder.path() / name;
}

inline void EditJson(const std::filesystem::path& path,
                     const std::function<void(nlohmann::json&)>& edit) {
  auto value = nlohmann::json::parse(ReadBytes(path));
  edit(value);
  WriteBytes(path, value.dump());
}

}  // namespace llava
