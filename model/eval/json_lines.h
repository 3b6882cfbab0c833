#pragma once

// Files of JSON objects, one a line: questions, answers, reviews.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/checkpoint/json_object.h"

namespace llava {

// The objects of all lines that are not blank, in order. Throws std::runtime_error naming the file,
// and the line if one is no object; what the objects throw names both, too.
std::vector<JsonObject> ReadJsonLines(const std::filesystem::path& path);

// What the file holds if it is one JSON text; else null, and ReadJsonLines tells what is wrong.
nlohmann::json ReadWholeJson(const std::filesystem::path& path);

// An id, which files have as text or as a whole number. Throws std::runtime_error as JsonObject.
std::string IdOf(const JsonObject& record, const std::string& key = "question_id");

// Records by IdOf(record, key). `twice`, if given, counts ids that come again (the last one stays);
// else such an id throws std::runtime_error naming its place.
std::map<std::string, JsonObject> ById(std::vector<JsonObject> records, const std::string& key,
                                       int64_t* twice = nullptr);

// Lines added one by one by a program that may be killed: a line is on disk when Append returns,
// and only the last one can be torn. One thread; one writer a file.
class JsonLinesFile {
 public:
  // Creates the file if there is none, and cuts off what follows its last line end. `first_key`: of
  // every record. Throws std::runtime_error naming the path, also for another kind of file, which
  // keeps its content.
  JsonLinesFile(const std::filesystem::path& path, const std::string& first_key);
  ~JsonLinesFile();
  JsonLinesFile(const JsonLinesFile&) = delete;
  JsonLinesFile& operator=(const JsonLinesFile&) = delete;

  // Throws std::runtime_error naming the path; a line that could not be written whole is cut off.
  void Append(const nlohmann::ordered_json& record);

  // Puts the lines that `name_of` calls by these names first, in that order, and leaves the others
  // behind them as they are. Nothing can be appended afterwards. Throws std::runtime_error naming
  // the path.
  void Order(const std::vector<std::string>& names,
             const std::function<std::string(const JsonObject&)>& name_of);

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace llava
