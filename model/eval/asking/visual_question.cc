#include "model/eval/asking/visual_question.h"

#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string_view>

#include "model/checkpoint/durable_file.h"
#include "model/data/instructions/instruction_record.h"
#include "model/digest/sha256.h"
#include "model/eval/json_lines.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kMark = "<image>";

std::string WithoutMarks(std::string text) {
  for (size_t at; (at = text.find(kMark)) != text.npos;) text.erase(at, kMark.size());
  return std::string(StripUtf8(text));
}

std::string_view MediaType(std::string_view bytes) {
  if (bytes.starts_with("\xFF\xD8\xFF")) return "image/jpeg";
  if (bytes.starts_with("\x89PNG\r\n\x1A\n")) return "image/png";
  if (bytes.starts_with("RIFF") && bytes.substr(0, 12).ends_with("WEBP")) return "image/webp";
  if (bytes.starts_with("BM")) return "image/bmp";
  return "";
}

std::string Base64(std::string_view bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const std::string_view three = bytes.substr(i, 3);
    uint32_t bits = 0;
    for (size_t b = 0; b < 3; ++b) {
      bits = bits << 8 | (b < three.size() ? static_cast<uint8_t>(three[b]) : 0);
    }
    for (size_t d = 0; d < 4; ++d) {
      text += d <= three.size() ? kDigits[bits >> (18 - 6 * d) & 63] : '=';
    }
  }
  return text;
}

VisualQuestion QuestionOfLine(const JsonObject& line, const std::filesystem::path& pictures) {
  VisualQuestion question;
  IdOf(line);  // checks its type
  question.id = line.At("question_id");
  question.text = WithoutMarks(line.Text("text"));
  const std::string image = line.Text("image", "");
  if (!image.empty()) question.picture = pictures / image;
  return question;
}

}  // namespace

std::string VisualQuestion::prompt() const {
  return (picture.empty() ? "" : "<image>\n") + (messages.empty() ? text : messages.back().text);
}

std::string VisualQuestion::name() const { return NameOfAnswer(id_text(), prompt(), shares_id); }

std::string NameOfAnswer(const std::string& id, const std::string& prompt, bool shares_id) {
  return shares_id ? id + " \"" + prompt + "\"" : id;
}

VisualQuestion QuestionOfRecord(std::string_view json, const std::filesystem::path& pictures) {
  const InstructionRecord parsed = ParseInstructionRecord(json);
  VisualQuestion question;
  question.id = parsed.id;
  const std::string& text = parsed.messages.front().text;
  question.text = parsed.images.empty() ? std::string(StripUtf8(text)) : WithoutMarks(text);
  if (parsed.images.size() > 1) {
    throw std::runtime_error("record " + parsed.id + " has several pictures");
  }
  if (!parsed.images.empty()) question.picture = pictures / parsed.images.front();
  return question;
}

std::vector<VisualQuestion> ReadVisualQuestions(const std::filesystem::path& path,
                                                const std::filesystem::path& pictures) {
  std::vector<VisualQuestion> questions;
  if (const nlohmann::json whole = ReadWholeJson(path); whole.is_array()) {
    for (const nlohmann::json& record : whole) {
      try {
        questions.push_back(QuestionOfRecord(record.dump(), pictures));
      } catch (const std::runtime_error& error) {
        throw std::runtime_error(path.string() + " record " + std::to_string(questions.size()) +
                                 ": " + error.what());
      }
    }
  } else {
    for (const JsonObject& line : ReadJsonLines(path)) {
      questions.push_back(QuestionOfLine(line, pictures));
    }
  }
  std::map<std::string, int64_t> uses;  // of ids
  for (const VisualQuestion& question : questions) ++uses[question.id_text()];
  std::set<std::string> seen;
  for (VisualQuestion& question : questions) {
    question.shares_id = uses[question.id_text()] > 1;
    if (!seen.insert(question.name()).second) {
      throw std::runtime_error(path.string() + ": question " + question.name() + " comes twice");
    }
  }
  if (questions.empty()) throw std::runtime_error(path.string() + ": has no questions");
  return questions;
}

Json AnswerLine(const VisualQuestion& question, const std::string& text,
                const std::string& model_id, const std::string& finish_reason) {
  const std::string prompt = question.prompt();
  const std::string named = model_id + '\0' + question.name() + '\0' + prompt + '\0' + text;
  return {{"question_id", question.id},
          {"prompt", prompt},
          {"text", text},
          {"answer_id", ToHex(HashBytes(named)).substr(0, 22)},
          {"model_id", model_id},
          {"metadata", {{"finish_reason", finish_reason}}}};
}

std::string PictureUrl(const std::filesystem::path& picture) {
  const std::string bytes = ReadSmallFile(picture);
  const std::string_view type = MediaType(bytes);
  if (type.empty()) throw std::runtime_error(picture.string() + ": is no JPEG, PNG, WebP or BMP");
  return "data:" + std::string(type) + ";base64," + Base64(bytes);
}

}  // namespace llava
