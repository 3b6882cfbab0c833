#include "server/gateway/openai_fields.h"

#include "server/gateway/openai_json.h"

namespace llava {
namespace {

constexpr char kParamPayload[] = "llava.v1/openai-param";

}  // namespace

std::string ParamOf(const absl::Status& status) {
  const auto param = status.GetPayload(kParamPayload);
  return param ? std::string(*param) : "";
}

namespace openai {

absl::Status WithParam(absl::Status status, const std::string& param) {
  status.SetPayload(kParamPayload, absl::Cord(param));
  return status;
}

absl::Status Bad(const std::string& param, const std::string& message) {
  return WithParam(absl::InvalidArgumentError(absl::StrCat(param, " ", message)), param);
}

Reader Flag(bool& target) {
  return [&target](const std::string& name, const Json& value) {
    if (!value.is_boolean()) return Bad(name, "is not true or false");
    target = value.get<bool>();
    return absl::OkStatus();
  };
}

Reader Ignore() {
  return [](const std::string&, const Json&) { return absl::OkStatus(); };
}

Reader Only(std::vector<Json> harmless) {
  return [harmless = std::move(harmless)](const std::string& name, const Json& value) {
    for (const Json& each : harmless) {
      if (value == each) return absl::OkStatus();
    }
    return Bad(name, "is not supported here; leave it out");
  };
}

absl::Status ReadFields(const Json& object, const std::map<std::string, Reader>& readers,
                        const std::string& where) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_null()) continue;  // clients send it for what they did not set
    const std::string name = where.empty() ? key : absl::StrCat(where, ".", key);
    const auto reader = readers.find(key);
    if (reader == readers.end()) {
      return Bad(name.substr(0, 200), "is not a parameter that is known here; leave it out");
    }
    if (auto status = reader->second(name, value); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace openai
}  // namespace llava
