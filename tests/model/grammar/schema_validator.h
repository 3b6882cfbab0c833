#pragma once

// The other side of model/grammar: says whether a document is valid, straight from the text of the
// standard and without any of the code that it judges.

#include <nlohmann/json.hpp>

namespace llava {

// Of the keywords that model/grammar supports.
bool IsValid(const nlohmann::ordered_json& document, const nlohmann::ordered_json& schema,
             const nlohmann::ordered_json& root);

// Code points of a text in UTF-8.
size_t CountCodePoints(const std::string& text);

}  // namespace llava
