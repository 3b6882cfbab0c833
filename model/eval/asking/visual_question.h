#pragma once

// Questions, most about a picture, that are put to a model, and the lines of its answers.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "model/openai/chat.h"

namespace llava {

struct VisualQuestion {
  nlohmann::ordered_json id;      // as its file has it: a text or a number
  std::string text;               // without marks of pictures
  std::filesystem::path picture;  // empty: none
  // Instead of text and picture: a whole conversation up to a question, without pictures.
  std::vector<ChatRequest::Message> messages = {};
  // If not empty, a checkpoint answers in two steps, as LLaVA on ScienceQA: its reasons up to the
  // first line of this, then, with all of this behind them, the answer. Servers answer in one.
  std::string answer_cue = {};
  bool shares_id = false;  // with other questions of its file, as those about one picture may

  std::string id_text() const { return id.is_string() ? id.get<std::string>() : id.dump(); }
  // As an answer's line tells it: "<image>\n" in front if there is a picture.
  std::string prompt() const;
  // Unlike that of any other question of its file: the id as text, where it is shared with the
  // prompt behind it.
  std::string name() const;
};

// The VisualQuestion::name of what an AnswerLine answers.
std::string NameOfAnswer(const std::string& id, const std::string& prompt, bool shares_id);

// JSON lines with "question_id", "text" and, if there is a picture, "image"; or a JSON array of
// LLaVA's instruction data, whose first messages are asked. `pictures`: the folder that "image" is
// relative to. Throws std::runtime_error naming file and place, also for an id that comes twice
// with the same text.
std::vector<VisualQuestion> ReadVisualQuestions(const std::filesystem::path& path,
                                                const std::filesystem::path& pictures);

// The question of a record of instruction data. Throws std::runtime_error.
VisualQuestion QuestionOfRecord(std::string_view json, const std::filesystem::path& pictures);

// {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}, as LLaVA writes them; the
// prompt begins with "<image>\n" if there is a picture. `finish_reason`: "stop", "length" ..
nlohmann::ordered_json AnswerLine(const VisualQuestion& question, const std::string& text,
                                  const std::string& model_id, const std::string& finish_reason);

// "data:image/png;base64,..": a picture file as part of a request. Throws std::runtime_error naming
// the file if it cannot be read or is no JPEG, PNG, WebP or BMP.
std::string PictureUrl(const std::filesystem::path& picture);

}  // namespace llava
