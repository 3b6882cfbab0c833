#pragma once

// JSON texts that others wrote. Header only: libraries without LibTorch use it, too.

#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

namespace llava {

// Whatever reads, copies, compares or prints a value calls itself for each level of it.
inline constexpr int kDeepestJson = 200;

// What nlohmann's exception says, without its name: "[json.exception.parse_error.101] parse ..".
inline std::string JsonReason(const std::exception& error) {
  const std::string_view what = error.what();
  const size_t name_end = what.starts_with('[') ? what.find("] ") : what.npos;
  return std::string(name_end == what.npos ? what : what.substr(name_end + 2));
}

// What `json` says; `Json` is nlohmann::json or nlohmann::ordered_json. Throws
// std::invalid_argument saying what is wrong, and where: broken syntax, a number that no double
// holds, more than kDeepestJson levels.
template <typename Json>
Json ParseJson(std::string_view json, bool ignore_comments = false) {
  const auto look = [](int depth, typename Json::parse_event_t, Json&) {
    if (depth <= kDeepestJson) return true;
    throw std::invalid_argument("has more than " + std::to_string(kDeepestJson) +
                                " levels of arrays and objects");
  };
  try {
    return Json::parse(json, look, /*allow_exceptions=*/true, ignore_comments);
  } catch (const typename Json::exception& error) {
    throw std::invalid_argument(JsonReason(error));
  }
}

}  // namespace llava
