#include "model/data/instructions/instruction_record.h"

#include <nlohmann/json.hpp>

#include "model/text/json_text.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::json;
using Role = ChatMessage::Role;

// The value in short, for messages.
std::string Shown(const Json& value) {
  constexpr size_t kMost = 60;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() <= kMost) return text;
  text.resize(kMost);
  while (!text.empty() && (text.back() & 0xC0) == 0x80) text.pop_back();  // no half characters
  if (!text.empty() && (text.back() & 0x80)) text.pop_back();
  return text + "...";
}

const Json& At(const Json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) {
    throw BadRecord(BadRecordKind::kKeys, where + "has no \"" + key + "\"");
  }
  return *found;
}

const std::string& Text(const Json& value, const std::string& what) {
  if (!value.is_string()) {
    throw BadRecord(BadRecordKind::kKeys, what + " is " + Shown(value) + ", expected a text");
  }
  return value.get_ref<const std::string&>();
}

int CountMarks(std::string_view text) {
  int marks = 0;
  for (size_t at = 0; (at = text.find(kImageMark, at)) != text.npos; at += kImageMark.size()) {
    ++marks;
  }
  return marks;
}

// `marks_count`: the record has pictures, else "<image>" is text like any other.
ChatMessage ReadMessage(const Json& value, size_t number, bool marks_count) {
  const std::string name = "message " + std::to_string(number + 1);
  if (!value.is_object()) {
    throw BadRecord(BadRecordKind::kKeys, name + " is " + Shown(value) + ", expected an object");
  }
  ChatMessage message;
  const std::string& from = Text(At(value, "from", name + " "), "\"from\" of " + name);
  message.text = Text(At(value, "value", name + " "), "\"value\" of " + name);
  message.role = number % 2 == 0 ? Role::kUser : Role::kAssistant;
  const char* expected = number % 2 == 0 ? "human" : "gpt";
  if (from != expected) {
    throw BadRecord(BadRecordKind::kRoles, name + " is from \"" + from + "\", expected \"" +
                                               expected + "\": human and gpt speak by turns");
  }
  const int marks = marks_count ? CountMarks(message.text) : 0;
  if (message.role == Role::kUser) {
    message.num_images = marks;
  } else if (marks > 0) {
    throw BadRecord(BadRecordKind::kImageMarks, name + ", an answer, holds <image>");
  }
  if (StripUtf8(message.text).empty()) {
    throw BadRecord(
        BadRecordKind::kEmptyText,
        name + (message.role == Role::kUser ? ", a question," : ", an answer,") + " is empty");
  }
  return message;
}

void CheckMarks(const InstructionRecord& record) {
  size_t marks = 0;
  for (const ChatMessage& message : record.messages) marks += message.num_images;
  const size_t pictures = record.images.size();
  if (marks == pictures) return;
  const auto number = [](size_t n, const char* what) {
    return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
  };
  throw BadRecord(BadRecordKind::kImageMarks, "the questions hold <image> " +
                                                  number(marks, "time") + ", the record has " +
                                                  number(pictures, "picture"));
}

}  // namespace

const char* ToString(BadRecordKind kind) {
  switch (kind) {
    case BadRecordKind::kSyntax:
      return "broken JSON";
    case BadRecordKind::kKeys:
      return "missing or wrong key";
    case BadRecordKind::kRoles:
      return "roles not alternating";
    case BadRecordKind::kImageMarks:
      return "wrong number of <image>";
    case BadRecordKind::kEmptyText:
      return "empty text";
    case BadRecordKind::kTemplate:
      return "unfit for the chat template";
    case BadRecordKind::kTooLong:
      return "too long";
    case BadRecordKind::kNothingToTrain:
      return "nothing to train";
    case BadRecordKind::kMissingPicture:
      return "missing picture";
    case BadRecordKind::kBrokenPicture:
      return "broken picture";
  }
  return "unknown";
}

InstructionRecord ParseInstructionRecord(std::string_view json) {
  Json value;
  try {
    value = ParseJson<Json>(json);
  } catch (const std::invalid_argument& error) {
    throw BadRecord(BadRecordKind::kSyntax, error.what());
  }
  if (!value.is_object()) {
    throw BadRecord(BadRecordKind::kKeys, "is " + Shown(value) + ", expected an object");
  }
  InstructionRecord record;
  const Json& id = At(value, "id", "");
  record.id = id.is_number_integer() ? id.dump() : Text(id, "\"id\"");
  const auto image = value.find("image");
  if (image != value.end() && !image->is_null()) {
    if (image->is_array()) {
      for (const Json& name : *image) record.images.push_back(Text(name, "a name in \"image\""));
    } else {
      record.images.push_back(Text(*image, "\"image\""));
    }
  }
  const Json& conversations = At(value, "conversations", "");
  if (!conversations.is_array()) {
    throw BadRecord(BadRecordKind::kKeys,
                    "\"conversations\" is " + Shown(conversations) + ", expected an array");
  }
  for (const Json& message : conversations) {
    record.messages.push_back(ReadMessage(message, record.messages.size(), image != value.end()));
  }
  if (record.messages.empty() || record.messages.size() % 2 != 0) {
    throw BadRecord(BadRecordKind::kRoles, "has " + std::to_string(record.messages.size()) +
                                               " messages, expected questions with an answer each");
  }
  CheckMarks(record);
  return record;
}

}  // namespace llava
