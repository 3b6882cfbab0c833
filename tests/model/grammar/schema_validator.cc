#include "tests/model/grammar/schema_validator.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <regex>
#include <string>

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

bool IsOfType(const Json& document, const std::string& type) {
  if (type == "integer") {
    return document.is_number() && std::floor(document.get<double>()) == document.get<double>();
  }
  return type == (document.is_number() ? "number" : document.type_name());
}

bool HasGoodType(const Json& document, const Json& type) {
  if (type.is_string()) return IsOfType(document, type);
  return std::any_of(type.begin(), type.end(),
                     [&](const Json& each) { return IsOfType(document, each); });
}

bool IsGoodObject(const Json& document, const Json& schema, const Json& root) {
  for (const Json& name : schema.value("required", Json::array())) {
    if (!document.contains(name.get<std::string>())) return false;
  }
  const Json properties = schema.value("properties", Json::object());
  const Json others = schema.value("additionalProperties", Json(true));
  for (const auto& [name, value] : document.items()) {
    if (!IsValid(value, properties.contains(name) ? properties[name] : others, root)) return false;
  }
  return true;
}

bool IsGoodArray(const Json& document, const Json& schema, const Json& root) {
  if (document.size() < schema.value("minItems", 0u)) return false;
  if (document.size() > schema.value("maxItems", SIZE_MAX)) return false;
  const Json first = schema.value("prefixItems", Json::array());
  const Json rest = schema.value("items", Json(true));
  for (size_t i = 0; i < document.size(); ++i) {
    if (!IsValid(document[i], i < first.size() ? first[i] : rest, root)) return false;
  }
  return true;
}

bool IsGoodNumber(const Json& document, const Json& schema) {
  const double value = document.get<double>();
  const auto bound = [&](const char* name, double otherwise) {
    return schema.contains(name) ? schema[name].get<double>() : otherwise;
  };
  return value >= bound("minimum", -INFINITY) && value <= bound("maximum", INFINITY) &&
         value > bound("exclusiveMinimum", -INFINITY) &&
         value < bound("exclusiveMaximum", INFINITY);
}

}  // namespace

size_t CountCodePoints(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

bool IsValid(const Json& document, const Json& schema, const Json& root) {
  if (schema.is_boolean()) return schema.get<bool>();
  if (schema.contains("$ref")) {
    const auto ref = schema["$ref"].get<std::string>();
    return IsValid(document, root.at(Json::json_pointer(ref.substr(1))), root);
  }
  if (schema.contains("type") && !HasGoodType(document, schema["type"])) return false;
  if (schema.contains("const") && document != schema["const"]) return false;
  if (schema.contains("enum")) {
    const Json& values = schema["enum"];
    if (std::find(values.begin(), values.end(), document) == values.end()) return false;
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    if (!schema.contains(keyword)) continue;
    const auto valid =
        std::count_if(schema[keyword].begin(), schema[keyword].end(),
                      [&](const Json& each) { return IsValid(document, each, root); });
    const std::string word = keyword;
    if (valid == 0 || (word == "oneOf" && valid > 1)) return false;
    if (word == "allOf" && valid < static_cast<std::ptrdiff_t>(schema[keyword].size()))
      return false;
  }
  if (document.is_string()) {
    const auto text = document.get<std::string>();
    const size_t size = CountCodePoints(text);
    if (size < schema.value("minLength", 0u) || size > schema.value("maxLength", SIZE_MAX)) {
      return false;
    }
    if (schema.contains("pattern") &&
        !std::regex_search(text, std::regex(schema["pattern"].get<std::string>()))) {
      return false;
    }
  }
  if (document.is_number() && !IsGoodNumber(document, schema)) return false;
  if (document.is_array() && !IsGoodArray(document, schema, root)) return false;
  return !document.is_object() || IsGoodObject(document, schema, root);
}

}  // namespace llava
