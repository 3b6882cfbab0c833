#include "model/eval/asking/answer_flags.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>

#include <ATen/Parallel.h>

#include "model/digest/sha256.h"
#include "model/eval/asking/chat_asking.h"
#include "model/eval/asking/local_model.h"
#include "model/eval/json_lines.h"
#include "model/progress/for_each.h"
#include "model/progress/progress.h"
#include "model/progress/stop_request.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;
using Shape = std::function<std::string(const std::string&)>;

// What is written of an answer. White space at its ends says nothing (as published), but the rules
// that read answers would stumble over it.
std::string Shaped(const Shape& shape, const std::string& answer) {
  const std::string text(StripUtf8(answer));
  return shape ? shape(text) : text;
}

// "question 7: .."
std::string Failure(const VisualQuestion& question, const std::exception& error) {
  return "question " + question.name() + ": " + error.what();
}

std::string Lines(const std::vector<Json>& lines) {
  std::string content;
  for (const Json& line : lines) {
    content += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return content;
}

constexpr const char* kServerGroup = "Server";

// How the question of a line was asked, in its "metadata".
constexpr const char* kAsked = "asked";
constexpr const char* kTemperature = "temperature";

// Throws std::invalid_argument unless `known` holds answers to questions asked as `keys` has it.
void RequireSame(const std::map<std::string, JsonObject>& known,
                 const std::map<std::string, std::string>& keys, const std::string& path) {
  std::string without, other;
  size_t num_without = 0, num_other = 0;
  const auto note = [](const std::string& name, std::string& names, size_t& count) {
    constexpr size_t kShown = 5;
    if (++count <= kShown) names += (count == 1 ? "" : ", ") + name;
    if (count == kShown + 1) names += " ..";
  };
  for (const auto& [name, line] : known) {
    const auto key = keys.find(name);
    if (key == keys.end()) continue;
    const auto metadata = line.value().find("metadata");
    const bool has = metadata != line.value().end() && metadata->is_object() &&
                     metadata->contains(kAsked) && metadata->at(kAsked).is_string();
    if (!has) {
      note(name, without, num_without);
    } else if (metadata->at(kAsked) != key->second) {
      note(name, other, num_other);
    }
  }
  if (num_without + num_other == 0) return;
  std::string what = path + ": ";
  if (num_other > 0) {
    what += std::to_string(num_other) +
            " answers are of another model, prompt, picture or sampling (question " + other + ")";
  }
  if (num_without > 0) {
    what += (num_other > 0 ? ", " : "") + std::to_string(num_without) +
            " answers do not tell what they are of (question " + without + ")";
  }
  throw std::invalid_argument(what + "; name another --out, or remove the file to ask them anew");
}

}  // namespace

// The likeliest answer, whoever gives it.
AnswerFlags::AnswerFlags()
    : chat_({.id = "", .model = "", .messages = {}, .max_tokens = 1024, .temperature = 0}) {}

void AnswerFlags::Add(CLI::App& command) {
  command.add_option("--out", out_, "File of answers, JSON lines")->required();
  command.add_option("--limit", limit_, "Ask the first questions only; 0: all")
      ->capture_default_str();
  command.add_option("--model-id", model_id_, "How the answers call the model");
  CLI::Option* checkpoint =
      command
          .add_option("--checkpoint", checkpoint_,
                      "Folder of a language model to ask here: on the CPU in float32; "
                      "--base-url asks a service, which has GPUs and smaller weights")
          ->group("Checkpoint");
  command.add_option("--tower", tower_, "Folder of its vision tower, if it has none itself")
      ->needs(checkpoint)
      ->group("Checkpoint");
  command.add_option("--template", chat_template_, "Chat template instead of its own")
      ->needs(checkpoint)
      ->group("Checkpoint");
  command.add_option("--threads", threads_, "Questions at a time; 0: one a core")
      ->check(CLI::Range(0, 256))
      ->capture_default_str()
      ->needs(checkpoint)
      ->group("Checkpoint");
  chat_.Add(command, kServerGroup);
  // All of a server's but how an answer is drawn.
  for (CLI::Option* option : command.get_options()) {
    const std::string name = option->get_name();
    const bool of_both = name == "--temperature" || name == "--top-p" || name == "--max-tokens";
    if (option->get_group() == kServerGroup && !of_both) checkpoint->excludes(option);
    if (name == "--top-p") option->description("Of sampling (default: 1, or the server's)");
  }
}

int AnswerFlags::Answer(std::vector<VisualQuestion> questions, const Shape& shape) const {
  if (limit_ > 0 && questions.size() > limit_) questions.resize(limit_);
  return checkpoint_.empty() ? AnswerByServer(questions, shape) : AnswerHere(questions, shape);
}

int AnswerFlags::AnswerHere(const std::vector<VisualQuestion>& questions,
                            const Shape& shape) const {
  const LocalModel model(checkpoint_, tower_, chat_template_);
  const ChatRequest request = chat_.Request();
  SamplingOptions sampling;
  sampling.temperature = static_cast<float>(request.temperature.value_or(0));
  sampling.top_p = static_cast<float>(request.top_p.value_or(1));
  const std::string id =
      model_id_.empty() ? std::filesystem::path(checkpoint_).filename().string() : model_id_;

  JsonLinesFile out(out_, "question_id");  // mends a torn line before it is read
  std::set<std::string> shared;            // ids of several questions
  for (const VisualQuestion& question : questions) {
    if (question.shares_id) shared.insert(question.id_text());
  }
  const auto name_of = [&shared](const JsonObject& line) {
    const std::string answered = IdOf(line);
    const bool shares_id = shared.contains(answered);
    return NameOfAnswer(answered, shares_id ? line.Text("prompt") : "", shares_id);
  };
  std::map<std::string, JsonObject> known;  // by name
  for (const JsonObject& line : ReadJsonLines(out_)) {
    const std::string name = name_of(line);
    if (!known.emplace(name, line).second) {
      line.Fail("question_id", "is " + name + " for the second time");
    }
  }
  const auto sampling_of = [&](const VisualQuestion& question) {
    SamplingOptions own = sampling;
    own.seed = static_cast<uint64_t>(&question - questions.data());
    return own;
  };
  const auto key_of = [&](const VisualQuestion& question) {
    const std::string key =
        model.KeyOf(question, static_cast<uint32_t>(request.max_tokens), sampling_of(question));
    return ToHex(HashBytes(id + '\0' + key));
  };
  std::vector<const VisualQuestion*> open;
  std::map<std::string, std::string> keys;                // of what is known
  std::map<const VisualQuestion*, std::string> failures;  // in the order of the questions
  for (const VisualQuestion& question : questions) {
    if (!known.contains(question.name())) {
      open.push_back(&question);
      continue;
    }
    try {
      keys[question.name()] = key_of(question);
    } catch (const std::runtime_error& error) {  // its answer may be of another picture
      failures[&question] = Failure(question, error);
    }
  }
  RequireSame(known, keys, out_);
  const StopRequest stop;
  Progress progress(stderr, "asking", questions.size(), questions.size() - open.size());
  std::mutex mutex;  // guards the file, the bar and what follows
  size_t ended = questions.size() - open.size(), cut_off = 0;
  // Of one question: others can be answered all the same.
  const auto answer_one = [&](const VisualQuestion& question) {
    std::optional<Json> line;
    bool cut = false;
    std::string failure;
    try {
      const auto answer =
          model.Answer(question, static_cast<uint32_t>(request.max_tokens), sampling_of(question));
      cut = answer.cut_off;
      line = AnswerLine(question, Shaped(shape, answer.text), id, cut ? "length" : "stop");
      (*line)["metadata"][kTemperature] = request.temperature.value_or(0);
      (*line)["metadata"][kAsked] = key_of(question);
    } catch (const std::exception& error) {
      line.reset();
      failure = Failure(question, error);
    }
    const std::lock_guard lock(mutex);
    if (line) {
      out.Append(*line);
    } else {
      failures[&question] = failure;
    }
    cut_off += line && cut;
    progress.Update(++ended);
  };
  ForEach(std::ssize(open), threads_, [&] {
    at::set_num_threads(1);
    return [&](int64_t number) {
      if (!StopRequest::Requested()) answer_one(*open[number]);
    };
  });
  progress.Finish(ended);
  if (cut_off > 0) std::fprintf(stderr, "%zu answers are cut off by --max-tokens\n", cut_off);
  std::vector<std::string> told;
  for (const auto& [question, failure] : failures) told.push_back(failure);
  TellFailures("llava-eval", told, stderr);
  if (ended < questions.size()) return 128 + StopRequest::Signal();
  if (!failures.empty()) return 1;
  std::vector<std::string> names;  // answers came as workers were done with them
  for (const VisualQuestion& question : questions) names.push_back(question.name());
  out.Order(names, name_of);
  return 0;
}

int AnswerFlags::AnswerByServer(const std::vector<VisualQuestion>& questions,
                                const Shape& shape) const {
  const ChatRequest base = chat_.Request();
  const auto make = [&](size_t number) {
    const VisualQuestion& question = questions[number];
    ChatRequest request = base;
    request.id = question.name();
    request.messages = question.messages;
    if (request.messages.empty()) {
      request.messages.push_back({"user", question.text, {}});
      if (!question.picture.empty()) {
        try {
          request.messages.back().images.push_back(PictureUrl(question.picture));
        } catch (const std::runtime_error& error) {
          throw std::runtime_error(Failure(question, error));
        }
      }
    }
    return request;
  };
  const StopRequest stop;
  const ChatAnswers answers =
      AskChat(chat_, out_ + ".journal", questions.size(), make, "asking", stderr);
  // As it is sent: --body may change it. null: the server's own.
  const Json temperature = Json::parse(BodyOf(base)).value(kTemperature, Json());
  std::vector<Json> lines;
  size_t cut_off = 0;
  for (const VisualQuestion& question : questions) {
    const auto found = answers.replies.find(question.name());
    if (found == answers.replies.end()) continue;
    const ChatReply& reply = found->second;
    cut_off += reply.finish_reason == "length";
    lines.push_back(AnswerLine(question, Shaped(shape, reply.text),
                               model_id_.empty() ? base.model : model_id_, reply.finish_reason));
    lines.back()["metadata"][kTemperature] = temperature;
  }
  WriteOutcome(answers, out_, Lines(lines), stderr);
  if (cut_off > 0) std::fprintf(stderr, "%zu answers are cut off by --max-tokens\n", cut_off);
  return answers.Report("llava-eval", stderr);
}

}  // namespace llava
