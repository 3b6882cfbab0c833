#include "server/gateway/openai_messages.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace llava {
namespace openai {
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
                           v1::ChatMessage& message, MessagePlace& place) {
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
  place.images.push_back(name + ".image_url");
  return ReadPicture(url, urls, name + ".image_url.url", *message.add_images());
}

absl::Status ReadContent(const Json& content, bool urls, const std::string& name,
                         v1::ChatMessage& message, MessagePlace& place) {
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
      auto status = ReadImagePart(part, urls, where, message, place);
      if (!status.ok()) return status;
    } else {
      return Bad(where + ".type",
                 absl::StrCat("is \"", type.substr(0, 64), "\"; known are text and image_url"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMessage(const Json& json, bool urls, v1::ChatMessage& message,
                         MessagePlace& place) {
  const std::string& name = place.first;
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
       {"content",
        [&](const std::string& field, const Json& value) {
          return ReadContent(value, urls, field, message, place);
        }},
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
absl::Status TakeMessage(v1::ChatMessage message, MessagePlace place, v1::ChatRequest& request,
                         std::vector<MessagePlace>& places) {
  auto& messages = *request.mutable_messages();
  const v1::Role role = message.role();
  const v1::Role before = messages.empty() ? v1::ROLE_UNSPECIFIED : messages.rbegin()->role();
  if (role == before) {
    v1::ChatMessage& last = *messages.rbegin();
    const bool both = !last.text().empty() && !message.text().empty();
    absl::StrAppend(last.mutable_text(), both ? "\n\n" : "", message.text());
    for (v1::ImageInput& image : *message.mutable_images()) *last.add_images() = std::move(image);
    MessagePlace& joined = places.back();
    joined.last = std::move(place.last);
    joined.images.insert(joined.images.end(), place.images.begin(), place.images.end());
    return absl::OkStatus();
  }
  if (role == v1::ROLE_SYSTEM && before != v1::ROLE_UNSPECIFIED) {
    return Bad(place.first + ".role", "is out of order: system and developer messages come first");
  }
  if (role == v1::ROLE_ASSISTANT && before != v1::ROLE_USER) {
    return Bad(place.first + ".role", "is out of order: an answer has a user message before it");
  }
  *messages.Add() = std::move(message);
  places.push_back(std::move(place));
  return absl::OkStatus();
}

// Takes "PREFIX[NUMBER]" off the front of `text`.
bool ConsumeIndexed(absl::string_view prefix, absl::string_view& text, size_t& index) {
  absl::string_view rest = text;
  if (!absl::ConsumePrefix(&rest, prefix) || !absl::ConsumePrefix(&rest, "[")) return false;
  const size_t end = rest.find(']');
  if (end == rest.npos || !absl::SimpleAtoi(rest.substr(0, end), &index)) return false;
  text = rest.substr(end + 1);
  return true;
}

}  // namespace

Reader Messages(v1::ChatRequest& chat, std::vector<MessagePlace>& places, bool urls) {
  return [&chat, &places, urls](const std::string& name, const Json& value) {
    if (!value.is_array()) return Bad(name, "is not a list");
    for (size_t i = 0; i < value.size(); ++i) {
      v1::ChatMessage message;
      MessagePlace place;
      place.first = place.last = absl::StrCat(name, "[", i, "]");
      auto status = ReadMessage(value[i], urls, message, place);
      if (status.ok()) status = TakeMessage(std::move(message), std::move(place), chat, places);
      if (!status.ok()) return status;
    }
    if (!value.empty() && chat.messages().rbegin()->role() != v1::ROLE_USER) {
      return Bad(name, "must end with a user message");
    }
    return absl::OkStatus();
  };
}

}  // namespace openai

absl::Status InClientsWords(const absl::Status& status, const std::vector<MessagePlace>& places) {
  absl::string_view rest = status.message();
  size_t index = 0, image = 0;
  if (!openai::ConsumeIndexed("messages", rest, index) || index >= places.size()) return status;
  const MessagePlace& place = places[index];
  std::string param = place.first, name = param;
  if (openai::ConsumeIndexed(".images", rest, image) && image < place.images.size()) {
    param = name = place.images[image];
  } else {
    const bool part = absl::ConsumePrefix(&rest, ".text") || absl::ConsumePrefix(&rest, ".images");
    if (place.first != place.last) {
      name = absl::StrCat(place.first, " to ", place.last, ", joined as of one role,");
    } else if (part) {
      name = param += ".content";
    }
  }
  absl::Status told(status.code(), absl::StrCat(name, rest));
  status.ForEachPayload([&told](absl::string_view type, const absl::Cord& payload) {
    told.SetPayload(type, payload);
  });
  return openai::WithParam(std::move(told), param);
}

}  // namespace llava
