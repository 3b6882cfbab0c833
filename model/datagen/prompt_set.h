#pragma once

// What teachers are told, and what their answers are measured by: files that users can replace.

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/datagen/captioned_images.h"
#include "model/openai/chat.h"

namespace llava {

enum class ResponseType { kConversation, kDetail, kComplex };
inline constexpr std::array kResponseTypes = {ResponseType::kConversation, ResponseType::kDetail,
                                              ResponseType::kComplex};
const char* ToString(ResponseType type);  // "conversation", "detail", "complex"
// Throws std::invalid_argument for another name.
ResponseType ResponseTypeNamed(const std::string& name);

struct Limits {
  uint64_t least = 0, most = UINT64_MAX;
  bool Hold(uint64_t value) const { return least <= value && value <= most; }
};

struct TypePrompts {
  std::string system;
  std::vector<std::pair<std::string, std::string>> examples;  // context, answer
  Limits turns{1, 1}, question_words, answer_words;
};

// A folder with conversation/, detail_description/ and complex_reasoning/, each with
// system_message.txt and examples NNN_caps.txt, NNN_conv.txt (the layout of LLaVA's own prompts);
// leaks.txt and refusals.txt (words in a row, one such a line); limits.json; questions/brief.txt
// and detail.txt (how to ask a teacher for questions; {n} is their number). Const after
// construction.
class PromptSet {
 public:
  // A user's folder, or the files that the program brings. Folders and files that are not there are
  // taken from the built-in ones, but the examples of a type come with its system message. Throws
  // std::invalid_argument naming what is wrong.
  static PromptSet Read(const std::filesystem::path& folder = {});

  const TypePrompts& operator[](ResponseType type) const {
    return types_[static_cast<size_t>(type)];
  }
  // System, examples, and the context of the image. `boxes`: for this type.
  std::vector<ChatRequest::Message> Messages(ResponseType type, const CaptionedImage& image,
                                             bool boxes) const;

  const std::vector<std::string>& leaks() const { return leaks_; }
  const std::vector<std::string>& refusals() const { return refusals_; }
  // {n} replaced.
  std::string AskForQuestions(bool detailed, int count) const;

 private:
  std::array<TypePrompts, kResponseTypes.size()> types_;
  std::vector<std::string> leaks_, refusals_;
  std::string ask_brief_, ask_detailed_;
};

// Name relative to the folder, content.
const std::vector<std::pair<std::string_view, std::string_view>>& BuiltInPromptFiles();

}  // namespace llava
