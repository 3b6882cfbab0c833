#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

// A JSON object of a settings file whose errors name file and key. Every getter throws
// std::runtime_error if the value is of another type, and without a fallback also if it is missing
// (null counts as missing).
class JsonObject {
 public:
  // Throws std::runtime_error unless the file is a JSON object of at most 64 MiB.
  static JsonObject Read(const std::filesystem::path& path);
  // Of a text that is there already; `where` it comes from. Throws likewise.
  static JsonObject Parse(std::string_view text, const std::string& where);
  JsonObject(nlohmann::json value, std::string where);

  bool Has(const std::string& key) const;
  int64_t Int(const std::string& key, std::optional<int64_t> fallback = std::nullopt) const;
  double Number(const std::string& key, std::optional<double> fallback = std::nullopt) const;
  bool Bool(const std::string& key, std::optional<bool> fallback = std::nullopt) const;
  std::string Text(const std::string& key,
                   std::optional<std::string> fallback = std::nullopt) const;
  JsonObject Object(const std::string& key) const;
  std::vector<double> Numbers(const std::string& key) const;

  const nlohmann::json& value() const { return value_; }
  const nlohmann::json& At(const std::string& key) const;
  [[noreturn]] void Fail(const std::string& key, const std::string& what) const;

 private:
  nlohmann::json value_;
  std::string where_;
};

}  // namespace llava
