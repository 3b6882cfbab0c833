#include "model/checkpoint/json_object.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "model/checkpoint/durable_file.h"
#include "model/text/json_text.h"

namespace llava {

using nlohmann::json;

JsonObject JsonObject::Read(const std::filesystem::path& path) {
  return Parse(ReadSmallFile(path), path.string());
}

JsonObject JsonObject::Parse(std::string_view text, const std::string& where) {
  json value;
  std::string fault;  // the library tells line and column
  try {
    value = ParseJson<json>(text);
  } catch (const std::invalid_argument& error) {
    const std::string what = error.what();
    const size_t at = what.find("at line");
    fault = at == what.npos ? ": " + what : ", " + what.substr(at);
  }
  if (!value.is_object()) throw std::runtime_error(where + ": is not a JSON object" + fault);
  return JsonObject(std::move(value), where);
}

JsonObject::JsonObject(nlohmann::json value, std::string where)
    : value_(std::move(value)), where_(std::move(where)) {}

bool JsonObject::Has(const std::string& key) const {
  const auto found = value_.find(key);
  return found != value_.end() && !found->is_null();
}

const json& JsonObject::At(const std::string& key) const {
  if (!Has(key)) Fail(key, "is missing");
  return value_.at(key);
}

void JsonObject::Fail(const std::string& key, const std::string& what) const {
  throw std::runtime_error(where_ + ": \"" + key + "\" " + what);
}

int64_t JsonObject::Int(const std::string& key, std::optional<int64_t> fallback) const {
  if (fallback && !Has(key)) return *fallback;
  const json& value = At(key);
  if (!value.is_number_integer()) Fail(key, "is " + value.dump() + ", an integer is expected");
  return value.get<int64_t>();
}

double JsonObject::Number(const std::string& key, std::optional<double> fallback) const {
  if (fallback && !Has(key)) return *fallback;
  const json& value = At(key);
  if (!value.is_number()) Fail(key, "is " + value.dump() + ", a number is expected");
  return value.get<double>();
}

bool JsonObject::Bool(const std::string& key, std::optional<bool> fallback) const {
  if (fallback && !Has(key)) return *fallback;
  const json& value = At(key);
  if (!value.is_boolean()) Fail(key, "is " + value.dump() + ", true or false is expected");
  return value.get<bool>();
}

std::string JsonObject::Text(const std::string& key, std::optional<std::string> fallback) const {
  if (fallback && !Has(key)) return *fallback;
  const json& value = At(key);
  if (!value.is_string()) Fail(key, "is " + value.dump() + ", a text is expected");
  return value.get<std::string>();
}

JsonObject JsonObject::Object(const std::string& key) const {
  const json& value = At(key);
  if (!value.is_object()) Fail(key, "is " + value.dump() + ", an object is expected");
  return JsonObject(value, where_ + ": " + key);
}

std::vector<double> JsonObject::Numbers(const std::string& key) const {
  const json& value = At(key);
  std::vector<double> numbers;
  for (const json& item : value) {
    if (!value.is_array() || !item.is_number()) Fail(key, "is not a list of numbers");
    numbers.push_back(item.get<double>());
  }
  return numbers;
}

}  // namespace llava
