#include "model/datagen/prompt_set.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "model/text/utf8.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Files = std::map<std::string, std::string>;  // by relative name

constexpr std::array kFolders = {"conversation", "detail_description", "complex_reasoning"};

Files BuiltInFiles() {
  Files files;
  for (const auto& [name, text] : BuiltInPromptFiles()) files.emplace(name, text);
  return files;
}

std::string ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file) {
    throw std::invalid_argument(path.string() + ": cannot be read: " + std::strerror(errno));
  }
  return text;
}

// `shown`: the path for messages.
std::string Stripped(const std::string& text, const std::string& shown) {
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Char next = ReadUtf8(rest);
    if (next.state != Utf8Char::State::kWhole) throw std::invalid_argument(shown + ": is no UTF-8");
    rest.remove_prefix(next.size);
  }
  std::string stripped(StripUtf8(text));
  if (stripped.empty()) throw std::invalid_argument(shown + ": is empty");
  return stripped;
}

std::vector<std::string> PhraseList(const std::string& text, const std::string& shown) {
  std::vector<std::string> phrases;
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = StripUtf8(rest.substr(0, end));
    rest.remove_prefix(std::min(rest.size(), end + 1));
    if (!line.empty() && !line.starts_with('#')) phrases.emplace_back(line);
  }
  if (phrases.empty()) throw std::invalid_argument(shown + ": no phrases, expected one a line");
  return phrases;
}

void ReadLimits(const std::string& text, const std::string& shown,
                std::array<TypePrompts, kResponseTypes.size()>& types) {
  const auto wrong = [&](const std::string& what) -> std::invalid_argument {
    return std::invalid_argument(shown + ": " + what);
  };
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw wrong("is no JSON object");
  for (const auto& [name, limits] : json.items()) {
    ResponseType type;
    try {
      type = ResponseTypeNamed(name);
    } catch (const std::invalid_argument& error) {
      throw wrong(error.what());
    }
    TypePrompts& prompts = types[static_cast<size_t>(type)];
    for (const auto& [key, range] : limits.items()) {
      Limits* place = key == "turns"            ? &prompts.turns
                      : key == "question_words" ? &prompts.question_words
                      : key == "answer_words"   ? &prompts.answer_words
                                                : nullptr;
      if (!place) throw wrong("unknown limit \"" + key + "\" of " + name);
      if (!range.is_array() || range.size() != 2 || !range[0].is_number_unsigned() ||
          !range[1].is_number_unsigned() || range[0] > range[1]) {
        throw wrong("\"" + key + "\" of " + name + " must be [least, most]");
      }
      *place = {range[0].get<uint64_t>(), range[1].get<uint64_t>()};
    }
  }
}

}  // namespace

const char* ToString(ResponseType type) {
  switch (type) {
    case ResponseType::kConversation:
      return "conversation";
    case ResponseType::kDetail:
      return "detail";
    case ResponseType::kComplex:
      return "complex";
  }
  return "unknown";
}

ResponseType ResponseTypeNamed(const std::string& name) {
  for (const ResponseType type : kResponseTypes) {
    if (name == ToString(type)) return type;
  }
  throw std::invalid_argument("no response type \"" + name +
                              "\": there are conversation, detail and complex");
}

PromptSet PromptSet::Read(const fs::path& folder) {
  Files files = BuiltInFiles();
  const auto shown = [&](const std::string& name) { return (folder / name).string(); };
  if (!folder.empty()) {
    if (!fs::is_directory(folder)) {
      throw std::invalid_argument(folder.string() + ": is no folder of prompts");
    }
    for (const char* type : kFolders) {
      if (!fs::exists(folder / type / "system_message.txt")) continue;
      std::erase_if(
          files, [&](const auto& file) { return file.first.starts_with(std::string(type) + "/"); });
    }
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      const fs::path& path = entry.path();
      if (path.extension() != ".txt" && path.extension() != ".json") continue;
      files[path.lexically_relative(folder).generic_string()] = ReadText(path);
    }
  }
  PromptSet set;
  for (size_t i = 0; i < kFolders.size(); ++i) {
    const std::string type = std::string(kFolders[i]) + "/";
    TypePrompts& prompts = set.types_[i];
    prompts.system =
        Stripped(files.at(type + "system_message.txt"), shown(type + "system_message.txt"));
    for (const auto& [name, text] : files) {
      if (!name.starts_with(type) || !name.ends_with("_caps.txt")) continue;
      const std::string answer = name.substr(0, name.size() - 8) + "conv.txt";
      if (!files.contains(answer)) {
        throw std::invalid_argument(shown(name) + ": the example has no " + answer);
      }
      prompts.examples.emplace_back(Stripped(text, shown(name)),
                                    Stripped(files.at(answer), shown(answer)));
    }
  }
  ReadLimits(files.at("limits.json"), shown("limits.json"), set.types_);
  set.leaks_ = PhraseList(files.at("leaks.txt"), shown("leaks.txt"));
  set.refusals_ = PhraseList(files.at("refusals.txt"), shown("refusals.txt"));
  set.ask_brief_ = Stripped(files.at("questions/brief.txt"), shown("questions/brief.txt"));
  set.ask_detailed_ = Stripped(files.at("questions/detail.txt"), shown("questions/detail.txt"));
  return set;
}

std::vector<ChatRequest::Message> PromptSet::Messages(ResponseType type,
                                                      const CaptionedImage& image,
                                                      bool boxes) const {
  const TypePrompts& prompts = (*this)[type];
  std::vector<ChatRequest::Message> messages;
  messages.push_back({.role = "system", .text = prompts.system});
  for (const auto& [context, answer] : prompts.examples) {
    messages.push_back({.role = "user", .text = context});
    messages.push_back({.role = "assistant", .text = answer});
  }
  messages.push_back({.role = "user", .text = SymbolicContext(image, boxes)});
  return messages;
}

std::string PromptSet::AskForQuestions(bool detailed, int count) const {
  std::string text = detailed ? ask_detailed_ : ask_brief_;
  constexpr std::string_view kNumber = "{n}";
  for (size_t at; (at = text.find(kNumber)) != text.npos;) {
    text.replace(at, kNumber.size(), std::to_string(count));
  }
  return text;
}

}  // namespace llava
