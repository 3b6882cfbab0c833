#pragma once

// A run is published once, however often its command is repeated.

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace llava {

// The version of `name` in `repository` that is this run's outcome: the one that published.json in
// the run's folder tells of if it is still there; one of the same `recipe` that a call which was
// killed has left; else what `publish` makes. Throws what that throws, and std::runtime_error
// naming the file that cannot be read or written.
std::filesystem::path PublishOnce(const std::filesystem::path& run_folder,
                                  const std::filesystem::path& repository, const std::string& name,
                                  const nlohmann::ordered_json& recipe,
                                  const std::function<std::filesystem::path()>& publish);

}  // namespace llava
