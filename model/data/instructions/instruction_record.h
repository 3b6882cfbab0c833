#pragma once

// A record of LLaVA's instruction data: {"id", "image"?, "conversations": [{"from", "value"},
// ...]}.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "model/text/chat_template.h"

namespace llava {

// Why a record cannot be used.
enum class BadRecordKind {
  kSyntax,          // no JSON
  kKeys,            // a key is missing or has the wrong type
  kRoles,           // not human and gpt by turns
  kImageMarks,      // not one <image> in a question for each picture
  kEmptyText,       // of a question or an answer
  kTemplate,        // the chat template cannot tell it
  kTooLong,         // even the first answer does not fit
  kNothingToTrain,  // no token with loss
  kMissingPicture,  // no such file
  kBrokenPicture,   // cannot be decoded
};
inline constexpr int kNumBadRecordKinds = 10;
const char* ToString(BadRecordKind kind);  // "broken JSON", "missing picture", ...

class BadRecord : public std::runtime_error {
 public:
  BadRecord(BadRecordKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  BadRecordKind kind() const { return kind_; }

 private:
  BadRecordKind kind_;
};

struct InstructionRecord {
  std::string id;                   // a number is taken as text
  std::vector<std::string> images;  // as in the file: relative to the folder of pictures
  // Questions with num_images set to the marks of pictures that their text has.
  std::vector<ChatMessage> messages;
};

// `json`: one record. "image" may be one name or an array of them; without the key a literal
// "<image>" is text, as published. Surplus keys are ignored. Throws BadRecord.
InstructionRecord ParseInstructionRecord(std::string_view json);

}  // namespace llava
