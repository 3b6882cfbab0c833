#pragma once

// The files of model/text/templates, as the build put them into the library.

#include <string_view>
#include <utility>
#include <vector>

namespace llava {

// Name and JSON text.
const std::vector<std::pair<std::string_view, std::string_view>>& BuiltinTemplates();

}  // namespace llava
