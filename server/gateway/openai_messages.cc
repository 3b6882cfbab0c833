#include "server/gateway/openai_messages.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"

namespace llava::openai {
namespace {

absl::Status ReadPicture(const std::string& url, bool urls, const std::string& name,
                         v1::ImageInput& image) {
  constexpr absl::string_view kMark = ";base64,";
  if (urls && absl::StartsWithIgnoreCase(url.substr(0, 4), "http")) {
    image.set_url(url);
    return absl::OkStatus();
  }
  if (!absl::StartsWithIgnoreCase(url.substr(0, 5), "data:")) {
    return Bad(name, urls ? "is neither a data URI (data:image/png;base64,...) nor an http(s) URL"
                          : "is not a data URI; this gateway fetches no pictures, send them as "
                            "data:image/png;base64,...");
  }
  const size_t mark = url.substr(0, 256).find(std::string(kMark));
  std::string bytes;
  if (mark == std::string::npos ||
      !absl::Base64Unescape(absl::string_view(url).substr(mark + kMark.size()), &bytes)) {
    return Bad(name, "is no data URI in base64, e.g. data:image/png;base64,...");
  }
  image.set_data(std::move(bytes));
  return absl::OkStatus();
}

absl::Status ReadImagePart(const Json& part, bool urls, const std::string& name,
                           v1::ChatMessage& message) {
  auto known = ReadFields(
      part, {{"type", Ignore()}, {"image_url", Ignore()}, {"cache_control", Ignore()}}, name);
  if (!known.ok()) return known;
  std::string url;
  if (!part.contains("image_url")) return Bad(name, "has no image_url");
  const Json& image = part["image_url"];
  if (image.is_string()) {
    url = image.get<std::string>();
  } else if (image.is_object()) {
    auto status = ReadFields(image,
                             {{"url",
                               [&](const std::string& field, const Json& value) {
                                 if (!value.is_string()) return Bad(field, "is not a text");
                                 url = value.get<std::string>();
                                 return absl::OkStatus();
                               }},
                              {"detail", Ignore()}},  // a hint; pictures have one size here
                             name + ".image_url");
    if (!status.ok()) return status;
  }
  return ReadPicture(url, urls, name + ".image_url.url", *message.add_images());
}

absl::Status ReadContent(const Json& content, bool urls, const std::string& name,
                         v1::ChatMessage& message) {
  if (content.is_string()) {
    message.set_text(content.get<std::string>());
    return absl::OkStatus();
  }
  if (!content.is_array()) return Bad(name, "is neither a text nor a list of parts");
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string where = absl::StrCat(name, "[", i, "]");
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string()) {
      return Bad(where, "is not a part with a type");
    }
    const std::string type = part["type"].get<std::string>();
    if (type == "text") {
      auto known = ReadFields(part,
                              {{"type", Ignore()},
                               {"text", Ignore()},
                               {"id", Ignore()},  // LangChain names each part for itself
                               {"cache_control", Ignore()}},
                              where);
      if (!known.ok()) return known;
      if (!part.contains("text") || !part["text"].is_string()) return Bad(where, "has no text");
      absl::StrAppend(message.mutable_text(), message.text().empty() ? "" : "\n",
                      part["text"].get<std::string>());
    } else if (type == "image_url") {
      if (auto status = ReadImagePart(part, urls, where, message); !status.ok()) return status;
    } else {
      return Bad(where + ".type",
                 absl::StrCat("is \"", type.substr(0, 64), "\"; known are text and image_url"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMessage(const Json& json, bool urls, const std::string& name,
                         v1::ChatMessage& message) {
  if (!json.is_object()) return Bad(name, "is not a message");
  auto status = ReadFields(
      json,
      {{"role",
        [&](const std::string& field, const Json& value) {
          static const std::map<std::string, v1::Role> roles = {{"system", v1::ROLE_SYSTEM},
                                                                {"developer", v1::ROLE_SYSTEM},
                                                                {"user", v1::ROLE_USER},
                                                                {"assistant", v1::ROLE_ASSISTANT}};
          const auto role = value.is_string() ? roles.find(value.get<std::string>()) : roles.end();
          if (role == roles.end()) {
            return Bad(field, "is not one of: system, developer, user, assistant");
          }
          message.set_role(role->second);
          return absl::OkStatus();
        }},
       {"content", [&](const std::string& field,
                       const Json& value) { return ReadContent(value, urls, field, message); }},
       {"type", Only({"text"})},  // lm-evaluation-harness says so of each message
       {"name", Ignore()},
       {"refusal", Ignore()},
       {"annotations", Ignore()},
       // Of answers that come back as other servers gave them; no model here reads it.
       {"reasoning_content", Ignore()},
       {"provider_specific_fields", Ignore()},
       {"cache_control", Ignore()},
       {"audio", Only({})},
       {"tool_calls", Only({Json::array()})},
       {"function_call", Only({})}},
      name);
  if (status.ok() && message.role() == v1::ROLE_UNSPECIFIED)
    return Bad(name + ".role", "is missing");
  return status;
}

// Models are taught to read user and assistant in turn, behind one system message: neighbours of
// one role are joined, any other order is refused.
absl::Status TakeMessage(v1::ChatMessage message, const std::string& name,
                         v1::ChatRequest& request) {
  auto& messages = *request.mutable_messages();
  const v1::Role role = message.role();
  const v1::Role before = messages.empty() ? v1::ROLE_UNSPECIFIED : messages.rbegin()->role();
  if (role == before) {
    v1::ChatMessage& last = *messages.rbegin();
    const bool both = !last.text().empty() && !message.text().empty();
    absl::StrAppend(last.mutable_text(), both ? "\n\n" : "", message.text());
    for (v1::ImageInput& image : *message.mutable_images()) *last.add_images() = std::move(image);
    return absl::OkStatus();
  }
  if (role == v1::ROLE_SYSTEM && before != v1::ROLE_UNSPECIFIED) {
    return Bad(name + ".role", "is out of order: system and developer messages come first");
  }
  if (role == v1::ROLE_ASSISTANT && before != v1::ROLE_USER) {
    return Bad(name + ".role", "is out of order: an answer has a user message before it");
  }
  *messages.Add() = std::move(message);
  return absl::OkStatus();
}

}  // namespace

Reader Messages(v1::ChatRequest& chat, bool urls) {
  return [&chat, urls](const std::string& name, const Json& value) {
    if (!value.is_array()) return Bad(name, "is not a list");
    for (size_t i = 0; i < value.size(); ++i) {
      const std::string each = absl::StrCat(name, "[", i, "]");
      v1::ChatMessage message;
      auto status = ReadMessage(value[i], urls, each, message);
      if (status.ok()) status = TakeMessage(std::move(message), each, chat);
      if (!status.ok()) return status;
    }
    if (!value.empty() && chat.messages().rbegin()->role() != v1::ROLE_USER) {
      return Bad(name, "must end with a user message");
    }
    return absl::OkStatus();
  };
}

}  // namespace llava::openai
