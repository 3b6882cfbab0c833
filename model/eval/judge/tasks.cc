#include "model/eval/judge/tasks.h"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>

#include "model/eval/json_lines.h"

namespace llava {
namespace {

using Json = nlohmann::json;

constexpr const char* kSystem =
    "You judge the quality of answers. You are helpful, and precise in what you check.";
constexpr const char* kWild = "llava_bench_";

// "1, 2, 3 .. (12 in all)".
std::string Some(const std::vector<std::string>& names) {
  constexpr size_t kMost = 20;
  std::string text;
  for (size_t i = 0; i < std::min(kMost, names.size()); ++i) {
    text += (i > 0 ? ", " : "") + names[i];
  }
  if (names.size() > kMost) text += " .. (" + std::to_string(names.size()) + " in all)";
  return text;
}

using Records = std::map<std::string, JsonObject>;

std::vector<std::string> Missing(const std::set<std::string>& all, const Records& in) {
  std::vector<std::string> missing;
  for (const std::string& id : all) {
    if (!in.contains(id)) missing.push_back(id);
  }
  return missing;
}

// Throws unless all files have the same ids.
void CheckIds(const std::vector<std::pair<std::filesystem::path, const Records*>>& files) {
  std::set<std::string> all;
  for (const auto& [path, records] : files) {
    for (const auto& [id, record] : *records) all.insert(id);
  }
  std::string found;
  for (const auto& [path, records] : files) {
    const std::vector<std::string> missing = Missing(all, *records);
    if (missing.empty()) continue;
    found += "\n  " + path.string() + " has no question_id " + Some(missing);
  }
  if (!found.empty()) throw std::invalid_argument("the files do not belong together:" + found);
}

// What the judge is told of the picture; "" without contexts.
struct Context {
  std::string text;
  bool wild = false;
};

std::string JoinedLines(const JsonObject& from, const std::string& key) {
  const Json& value = from.At(key);
  if (value.is_string()) return value.get<std::string>();
  std::string text;
  for (const Json& line : value) {
    if (!value.is_array() || !line.is_string()) from.Fail(key, "is no list of texts");
    if (&line != &value.front()) text += '\n';
    text += line.get<std::string>();
  }
  return text;
}

// [0.1, 0.25, 1, 1], as Python prints a list.
std::string Box(const JsonObject& from, const Json& instance) {
  const auto category = instance.find("category"), box = instance.find("bbox");
  if (category == instance.end() || !category->is_string() || box == instance.end() ||
      !box->is_array()) {
    from.Fail("instances", "has " + instance.dump() + ", expected \"category\" and \"bbox\"");
  }
  std::string text = category->get<std::string>() + ": [";
  for (const Json& edge : *box) {
    if (&edge != &box->front()) text += ", ";
    text += edge.dump();
  }
  return text + "]";
}

Context ReadContext(const JsonObject& from) {
  if (from.Has("caption")) return {JoinedLines(from, "caption"), true};
  Context context{JoinedLines(from, "captions"), false};
  if (!from.Has("instances")) return context;
  context.text += "\n\n";
  const Json& instances = from.At("instances");
  if (!instances.is_array()) from.Fail("instances", "is no list");
  for (const Json& instance : instances) {
    if (&instance != &instances.front()) context.text += '\n';
    context.text += Box(from, instance);
  }
  return context;
}

std::map<std::string, Context> ReadContexts(const std::filesystem::path& path) {
  std::map<std::string, Context> contexts;
  if (path.empty()) return contexts;
  for (const JsonObject& line : ReadJsonLines(path)) {
    contexts[line.Text("image")] = ReadContext(line);
  }
  return contexts;
}

JsonObject ReadRules(const std::filesystem::path& path) {
  return path.empty() ? JsonObject(Json::parse(JudgeRulesJson()), "the rules")
                      : JsonObject::Read(path);
}

std::string Block(const std::string& role, const std::string& answer) {
  return "[" + role + "]\n" + answer + "\n\n[End of " + role + "]\n\n";
}

// An id as its file has it: text or number.
Json AnswerId(const JsonObject& answer) {
  return answer.At(answer.Has("answer_id") ? "answer_id" : "question_id");
}

}  // namespace

std::vector<JudgeTask> JoinJudgeFiles(const JudgeFiles& files) {
  const std::vector<JsonObject> questions = ReadJsonLines(files.questions);
  const Records by_id = ById(questions, "question_id");
  const Records reference = ById(ReadJsonLines(files.reference), "question_id");
  const Records candidate = ById(ReadJsonLines(files.candidate), "question_id");
  CheckIds(
      {{files.questions, &by_id}, {files.reference, &reference}, {files.candidate, &candidate}});
  const std::map<std::string, Context> contexts = ReadContexts(files.contexts);
  const JsonObject rules = ReadRules(files.rules);

  std::vector<JudgeTask> tasks;
  std::vector<std::string> no_context, no_rule;
  for (const JsonObject& question : questions) {
    const std::string id = IdOf(question);
    Context context;
    if (!files.contexts.empty()) {
      const std::string image = question.Text("image");
      const auto found = contexts.find(image);
      if (found == contexts.end()) {
        no_context.push_back(image);
        continue;
      }
      context = found->second;
    }
    const std::string own = question.Text("category");
    const std::string category = context.wild && !own.starts_with(kWild) ? kWild + own : own;
    const std::string rule_name = rules.Has(category) ? category : "default";
    if (!rules.Has(rule_name)) {
      no_rule.push_back(category);
      continue;
    }
    const JsonObject rule = rules.Object(rule_name);
    const std::string role = rule.Text("role", "Assistant");
    const JsonObject &one = reference.at(id), &other = candidate.at(id);
    JudgeTask task{id,
                   {{"id", tasks.size() + 1},
                    {"question_id", question.At("question_id")},
                    {"answer1_id", AnswerId(one)},
                    {"answer2_id", AnswerId(other)},
                    {"category", category}},
                   kSystem,
                   ""};
    if (!files.contexts.empty()) task.prompt = "[Context]\n" + context.text + "\n\n";
    task.prompt += "[Question]\n" + question.Text("text") + "\n\n" +
                   Block(role + " 1", one.Text("text")) + Block(role + " 2", other.Text("text")) +
                   "[System]\n" + rule.Text("prompt") + "\n\n";
    tasks.push_back(std::move(task));
  }
  if (!no_context.empty()) {
    throw std::invalid_argument(files.contexts.string() + " has no context for " +
                                Some(no_context));
  }
  if (!no_rule.empty()) {
    throw std::invalid_argument(files.rules.string() + " has no rule, and no \"default\", for " +
                                Some(no_rule));
  }
  return tasks;
}

}  // namespace llava
