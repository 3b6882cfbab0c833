#pragma once

// Readers of the fields of a JSON object in a request of the OpenAI API. Each is taken, known to
// have no effect here, or refused by name.

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace llava::openai {

using Json = nlohmann::json;

// INVALID_ARGUMENT with the field's name as ParamOf.
absl::Status Bad(const std::string& param, const std::string& message);
// An error about the field that is called `param`.
absl::Status WithParam(absl::Status status, const std::string& param);

// What to do with a field and its value, which is never null.
using Reader = std::function<absl::Status(const std::string& name, const Json& value)>;

template <typename Take>
Reader Number(Take take) {
  return [take](const std::string& name, const Json& value) {
    if (!value.is_number()) return Bad(name, "is not a number");
    take(value.get<float>());
    return absl::OkStatus();
  };
}

template <typename Take>
Reader Count(uint64_t low, uint64_t high, Take take) {
  return [=](const std::string& name, const Json& value) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() < low ||
        value.get<uint64_t>() > high) {
      return Bad(name, absl::StrCat("is not a whole number from ", low, " to ", high));
    }
    take(value.get<uint64_t>());
    return absl::OkStatus();
  };
}

// A whole number of which -1 says that it is not set.
template <typename Take>
Reader CountOrNone(uint64_t low, uint64_t high, Take take) {
  return [count = Count(low, high, take)](const std::string& name, const Json& value) {
    return value == -1 ? absl::OkStatus() : count(name, value);
  };
}

Reader Flag(bool& target);
Reader Ignore();
// Has no function here, but says so only if it asks for something.
Reader Only(std::vector<Json> harmless);

// `where`: the object's own name, empty for the body.
absl::Status ReadFields(const Json& object, const std::map<std::string, Reader>& readers,
                        const std::string& where);

}  // namespace llava::openai
