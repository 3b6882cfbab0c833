#pragma once

// One picture's features as a file, and what it is called. Format: docs/vision.md.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "server/vision/features.h"

namespace llava {

// The bytes of a file, and back. Nothing: not such a file, damaged, or of another key.
std::string FeatureFile(const Features& features);
std::shared_ptr<const Features> ParseFeatureFile(std::string_view file, const std::string& key);

std::string FeatureFileName(const std::string& key);
// What the names of a picture's files begin with: not its own digest, which would tell who has it.
std::string FeatureFilePrefix(std::string_view picture);
// ... the beginning of `name`.
std::string FeatureFilePrefixOf(const std::string& name);
bool IsFeatureFile(const std::string& name);

}  // namespace llava
