#include "model/eval/vqa/vqa_files.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "model/eval/json_lines.h"
#include "model/text/ascii.h"

namespace llava {
namespace {

using Json = nlohmann::json;

// {id: {"question", "answer", ..}}, as GQA. One line of JSON lines is no such object.
bool IsById(const Json& whole) {
  return whole.is_object() && !whole.empty() && !whole.contains("question_id") &&
         std::all_of(whole.begin(), whole.end(), [](const Json& one) { return one.is_object(); });
}

std::vector<JsonObject> ReadRecords(const std::filesystem::path& path) {
  Json whole = ReadWholeJson(path);
  std::string at;
  for (const char* key : {"annotations", "data"}) {
    if (!whole.is_object() || !whole.contains(key)) continue;
    Json list = std::move(whole[key]);
    whole = std::move(list);
    at = std::string(" ") + key;
    break;
  }
  if (IsById(whole)) {
    std::vector<JsonObject> records;
    for (auto& [id, one] : whole.items()) {
      one["question_id"] = id;
      records.emplace_back(std::move(one), path.string() + " question " + id);
    }
    return records;
  }
  if (!whole.is_array()) return ReadJsonLines(path);
  std::vector<JsonObject> records;
  for (Json& one : whole) {
    const std::string where = path.string() + at + " record " + std::to_string(records.size());
    if (!one.is_object()) throw std::runtime_error(where + ": is no JSON object");
    records.emplace_back(std::move(one), where);
  }
  return records;
}

std::vector<std::string> AnswersOf(const JsonObject& record) {
  if (!record.Has("answers")) {
    return {record.Text(record.Has("label") && !record.Has("answer") ? "label" : "answer")};
  }
  std::vector<std::string> answers;
  const Json& list = record.At("answers");
  for (const Json& one : list) {
    if (list.is_array() && one.is_string()) {
      answers.push_back(one.get<std::string>());
    } else if (list.is_array() && one.is_object() && one.contains("answer") &&
               one["answer"].is_string()) {
      answers.push_back(one["answer"].get<std::string>());
    } else {
      record.Fail("answers", "has " + one.dump() + ", expected texts");
    }
  }
  if (answers.empty()) record.Fail("answers", "is empty");
  return answers;
}

std::string AnswerText(const JsonObject& record) {
  return record.Text(record.Has("answer") && !record.Has("text") ? "answer" : "text");
}

YesNo LabelOf(const JsonObject& record) {
  const std::string label = record.Text("label");
  if (label != "yes" && label != "no") {
    record.Fail("label", "is \"" + label + "\", expected yes or no");
  }
  return label == "yes" ? YesNo::kYes : YesNo::kNo;
}

std::string CategoryOf(const std::filesystem::path& labels) {
  constexpr std::string_view kPrefix = "coco_pope_";
  const std::string name = labels.stem().string();
  return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
}

std::string GroupOf(const JsonObject& record, const std::string& key) {
  if (key.empty() || !record.Has(key)) return "";
  const Json& value = record.At(key);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

std::vector<VqaQuestion> ReadVqaQuestions(const std::filesystem::path& path,
                                          const std::string& group_key, bool textvqa) {
  std::vector<VqaQuestion> questions;
  std::map<std::string, size_t> seen;
  for (const JsonObject& record : ReadRecords(path)) {
    const bool by_text = textvqa && record.Has("image_id") && record.Has("question");
    VqaQuestion question{
        by_text ? TextVqaId(IdOf(record, "image_id"), record.Text("question")) : IdOf(record),
        AnswersOf(record), GroupOf(record, group_key)};
    if (!seen.emplace(question.id, questions.size()).second) {
      record.Fail(by_text ? "question" : "question_id", "comes for the second time");
    }
    questions.push_back(std::move(question));
  }
  if (questions.empty()) throw std::runtime_error(path.string() + ": has no questions");
  return questions;
}

std::map<std::string, std::string> ReadVqaAnswers(const std::filesystem::path& path, bool textvqa) {
  std::map<std::string, std::string> answers;
  for (const JsonObject& record : ReadRecords(path)) {
    const std::string id =
        textvqa && record.Has("prompt")
            ? TextVqaId(IdOf(record), QuestionOfTextVqaPrompt(record.Text("prompt")))
            : IdOf(record);
    if (!answers.emplace(id, AnswerText(record)).second) {
      record.Fail("question_id", "is " + IdOf(record) + " for the second time");
    }
  }
  return answers;
}

std::string TextVqaId(const std::string& image, const std::string& question) {
  return image + '\n' + Lowered(question);
}

std::string QuestionOfTextVqaPrompt(const std::string& prompt) {
  constexpr std::string_view kPicture = "<image>\n";
  constexpr std::string_view kBefore = "Question: ", kBehind = " Short answer:";
  std::string_view rest = prompt;
  if (rest.starts_with(kPicture)) rest.remove_prefix(kPicture.size());
  if (rest.starts_with("OCR tokens: ")) {
    const size_t begin = rest.find(kBefore);
    const size_t end = begin == rest.npos ? begin : rest.find(kBehind, begin);
    if (end != rest.npos) {
      return std::string(rest.substr(begin + kBefore.size(), end - begin - kBefore.size()));
    }
  }
  if (rest.starts_with("Reference OCR token:"))
    rest.remove_prefix(std::min(rest.find('\n'), rest.size() - 1) + 1);
  return std::string(rest.substr(0, rest.find('\n')));
}

std::vector<std::pair<std::string, PopeCounts>> CountPope(
    const std::vector<std::filesystem::path>& labels, const std::filesystem::path& answers,
    const std::filesystem::path& questions) {
  const std::map<std::string, JsonObject> given = ById(ReadRecords(answers), "question_id");
  std::map<std::string, std::vector<std::string>> asked;  // ids by category, as the file has them
  if (!questions.empty()) {
    std::set<std::string> ids;
    for (const JsonObject& record : ReadRecords(questions)) {
      const std::string id = IdOf(record);
      if (!ids.insert(id).second) record.Fail("question_id", "is " + id + " for the second time");
      asked[record.Text("category")].push_back(id);
    }
    for (const auto& [id, answer] : given) {
      if (ids.contains(id)) continue;
      throw std::invalid_argument(questions.string() + " has no question " + id + " of " +
                                  answers.string());
    }
  }

  std::vector<std::pair<std::string, PopeCounts>> counted;
  for (const std::filesystem::path& file : labels) {
    const std::string category = CategoryOf(file);
    const std::vector<JsonObject> lines = ReadRecords(file);
    std::vector<std::string> ids;
    if (questions.empty()) {
      for (const JsonObject& line : lines) ids.push_back(IdOf(line));
    } else {
      ids = asked[category];
      if (ids.size() != lines.size()) {
        throw std::invalid_argument(file.string() + " has " + std::to_string(lines.size()) +
                                    " labels, " + questions.string() + " " +
                                    std::to_string(ids.size()) + " questions of \"" + category +
                                    "\"");
      }
    }
    PopeCounts counts;
    for (size_t i = 0; i < lines.size(); ++i) {
      const auto answer = given.find(ids[i]);
      if (answer == given.end()) {
        throw std::invalid_argument(
            answers.string() + " has no answer to question " + ids[i] +
            (questions.empty() ? " of " + file.string() : " of \"" + category + "\""));
      }
      counts.Add(LabelOf(lines[i]), AnswerText(answer->second));
    }
    counted.emplace_back(category, counts);
  }
  return counted;
}

}  // namespace llava
