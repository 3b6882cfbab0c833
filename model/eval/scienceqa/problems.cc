#include "model/eval/scienceqa/problems.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <stdexcept>
#include <string_view>

#include "model/checkpoint/json_object.h"

namespace llava {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostChoices = 26;  // letters

int Grade(const JsonObject& problem) {
  const std::string text = problem.Text("grade", "");
  if (text.empty()) return 0;
  constexpr std::string_view kPrefix = "grade";
  int grade = 0;
  const char* end = text.data() + text.size();
  if (!text.starts_with(kPrefix) ||
      std::from_chars(text.data() + kPrefix.size(), end, grade).ptr != end || grade < 1 ||
      grade > 12) {
    problem.Fail("grade", "is \"" + text + "\", expected grade1 .. grade12");
  }
  return grade;
}

ScienceProblem ReadProblem(const std::string& id, const JsonObject& from) {
  ScienceProblem problem;
  problem.id = id;
  problem.question = from.Text("question");
  const Json& choices = from.At("choices");
  for (const Json& choice : choices) {
    if (!choices.is_array() || !choice.is_string()) from.Fail("choices", "is no list of texts");
    problem.choices.push_back(choice.get<std::string>());
  }
  if (problem.choices.size() < 2 || problem.choices.size() > kMostChoices) {
    from.Fail("choices", "are " + std::to_string(problem.choices.size()) + ", expected 2 to 26");
  }
  const int64_t answer = from.Int("answer");
  if (answer < 0 || answer >= static_cast<int64_t>(problem.choices.size())) {
    from.Fail("answer", "is " + std::to_string(answer) + ", there are " +
                            std::to_string(problem.choices.size()) + " choices");
  }
  problem.answer = static_cast<int>(answer);
  problem.hint = from.Text("hint", "");
  problem.image = from.Text("image", "");
  problem.subject = from.Text("subject", "");
  problem.grade = Grade(from);
  problem.lecture = from.Text("lecture", "");
  problem.solution = from.Text("solution", "");
  return problem;
}

std::vector<std::string> IdsOfSplit(const JsonObject& problems, const std::filesystem::path& splits,
                                    const std::string& split) {
  std::vector<std::string> ids;
  std::set<std::string> known;
  if (!splits.empty()) {
    const JsonObject file = JsonObject::Read(splits);
    for (const auto& [name, list] : file.value().items()) known.insert(name);
    if (known.contains(split)) {
      const Json& list = file.At(split);
      for (const Json& id : list) {
        if (!list.is_array() || !(id.is_string() || id.is_number_integer())) {
          file.Fail(split, "is no list of ids");
        }
        ids.push_back(id.is_string() ? id.get<std::string>() : id.dump());
      }
    }
  } else {
    for (const auto& [id, problem] : problems.value().items()) {
      const std::string own = problems.Object(id).Text("split", "");
      known.insert(own);
      if (own == split) ids.push_back(id);
    }
    const auto by_number = [](const std::string& a, const std::string& b) {
      return std::pair(a.size(), a) < std::pair(b.size(), b);
    };
    std::sort(ids.begin(), ids.end(), by_number);
  }
  if (!ids.empty()) return ids;
  std::string names;
  for (const std::string& name : known) names += " \"" + name + "\"";
  throw std::invalid_argument("no problems in the split \"" + split + "\"; the splits are" + names);
}

}  // namespace

std::vector<ScienceProblem> ReadScienceProblems(const std::filesystem::path& problems,
                                                const std::filesystem::path& splits,
                                                const std::string& split) {
  const JsonObject file = JsonObject::Read(problems);
  std::vector<ScienceProblem> found;
  std::set<std::string> seen;
  for (const std::string& id : IdsOfSplit(file, splits, split)) {
    if (!seen.insert(id).second) {
      throw std::runtime_error(splits.string() + ": \"" + split + "\" has problem " + id +
                               " twice");
    }
    if (!file.Has(id)) {
      throw std::runtime_error(problems.string() + ": has no problem " + id + ", which is in \"" +
                               split + "\" of " + splits.string());
    }
    found.push_back(ReadProblem(id, file.Object(id)));
  }
  return found;
}

void AddCaptions(const std::filesystem::path& captions, std::vector<ScienceProblem>& problems) {
  const JsonObject by_id = JsonObject::Read(captions).Object("captions");
  for (ScienceProblem& problem : problems) problem.caption = by_id.Text(problem.id, "");
}

}  // namespace llava
