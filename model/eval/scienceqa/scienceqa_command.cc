#include "model/eval/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint/durable_file.h"
#include "model/data/scenes/random.h"
#include "model/eval/asking/answer_flags.h"
#include "model/eval/scienceqa/answers.h"
#include "model/eval/scienceqa/problems.h"
#include "model/eval/scienceqa/prompts.h"
#include "model/eval/scienceqa/score.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

// Which problems.
struct ProblemFlags {
  std::string problems, splits, split = "test";

  void Add(CLI::App& command) {
    command.add_option("--problems", problems, "File problems.json")->required();
    command.add_option("--splits", splits,
                       "File pid_splits.json; without it, the problems' own \"split\" counts");
    command.add_option("--split", split, "test, val, minitest, train ..")->capture_default_str();
  }
  std::vector<ScienceProblem> Read() const { return ReadScienceProblems(problems, splits, split); }
};

struct ScoreFlags {
  ProblemFlags problems;
  std::string predictions, second, verdicts;
  bool texts = false, lenient = false, json = false;
};

// What was chosen, and how it is told.
struct Chosen {
  std::string name;
  std::vector<int> answers;
};

std::string Notes(const SciencePredictions& predictions,
                  const std::vector<ScienceProblem>& problems, const std::vector<int>& answers,
                  const ScienceScore& score, bool lenient, Json& json) {
  std::string notes;
  const int64_t known = static_cast<int64_t>(problems.size()) - score.missing;
  const int64_t surplus = static_cast<int64_t>(predictions.by_id.size()) - known;
  json["surplus"] = surplus;
  json["repeated"] = predictions.repeated;
  if (surplus > 0) {
    notes += std::to_string(surplus) + " answers to problems of other splits are left out\n";
  }
  if (predictions.repeated > 0) {
    notes += std::to_string(predictions.repeated) + " ids come again: the last answer counts\n";
  }
  const int64_t right = score.classes.back().right;
  if (const auto& stated = predictions.stated_correct) {
    json["stated_correct"] = *stated;
    if (*stated != right) {
      notes += "the file says of itself that " + std::to_string(*stated) + " are right, its " +
               "answers are right " + std::to_string(right) + " times\n";
    }
  }
  if (!lenient) {
    const std::vector<int> all =
        ChosenAnswers(problems, predictions, AnswerReading::kLenient, true);
    std::vector<int> mended = answers;
    for (size_t i = 0; i < mended.size(); ++i) {
      if (mended[i] == kUnreadAnswer || mended[i] == kAnswerOutOfRange) mended[i] = all[i];
    }
    const ScienceScore better = ScoreScience(problems, mended);
    const auto found = static_cast<int64_t>(score.failed_ids.size()) -
                       static_cast<int64_t>(better.failed_ids.size());
    json["lenient"] = {{"found", found}, {"right", better.classes.back().right - right}};
    if (found > 0) {
      notes += "a lenient reading would find an answer in " + std::to_string(found) +
               " of them, right in " + std::to_string(better.classes.back().right - right) + "\n";
    }
  }
  return notes;
}

int Score(const ScoreFlags& flags) {
  const std::vector<ScienceProblem> problems = flags.problems.Read();
  const SciencePredictions predictions = ReadSciencePredictions(flags.predictions);
  const AnswerReading reading = flags.lenient ? AnswerReading::kLenient : AnswerReading::kPublished;
  const std::vector<int> own = ChosenAnswers(problems, predictions, reading, flags.texts);
  const ScienceScore score = ScoreScience(problems, own);
  Json json = {
      {"kind", "scienceqa"}, {"split", flags.problems.split}, {"predictions", flags.predictions}};
  json.update(ScienceScoreJson(score));
  std::string text = ScienceScoreTable(score);
  text += Notes(predictions, problems, own, score, flags.lenient, json);

  std::vector<Chosen> others;
  if (!flags.second.empty()) {
    // As the published scripts: their last rule alone, on the texts where there are any.
    const auto sentences = [&problems](const std::string& file) {
      const SciencePredictions read = ReadSciencePredictions(file);
      const bool texts = std::any_of(read.by_id.begin(), read.by_id.end(),
                                     [](const auto& one) { return !one.second.text.empty(); });
      return ChosenAnswers(problems, read, AnswerReading::kSentence, texts);
    };
    others.push_back({"second", sentences(flags.second)});
    const std::vector<int> second = others[0].answers;
    others.push_back({"complement", FallBack(second, own)});
    if (!flags.verdicts.empty()) {
      others.push_back({"judge", FallBack(sentences(flags.verdicts), own)});
    }
    const Share either = RightInEither(problems, own, second);
    json["either_right"] = {
        {"acc", 100 * either.value()}, {"right", either.right}, {"count", either.asked}};
    char line[96];
    std::snprintf(line, sizeof(line), "either of both is right: %.2f (%lld of %lld)\n",
                  100 * either.value(), static_cast<long long>(either.right),
                  static_cast<long long>(either.asked));
    text += line;
  } else if (!flags.verdicts.empty()) {
    throw std::invalid_argument("--verdicts needs --second, whose answers are judged");
  }
  for (const Chosen& other : others) {
    const ScienceScore theirs = ScoreScience(problems, other.answers);
    json[other.name] = ScienceScoreJson(theirs);
    text += "\n" + other.name + "\n" + ScienceScoreTable(theirs);
  }
  std::printf("%s", flags.json ? (json.dump(2) + "\n").c_str() : text.c_str());
  return 0;
}

// How they are told.
struct PromptFlags {
  ProblemFlags problems;
  std::string format = "QCM-LEA", layout = "llava", captions, last_line;
  int shots = 2;
  std::vector<std::string> shot_ids;
  std::string shot_split = "train";
  uint64_t seed = 3;
  std::vector<std::pair<const CLI::Option*, std::vector<std::string>>> some;  // of Only

  void Add(CLI::App& command, const std::vector<std::string>& layouts);
  // The option says something to those layouts only.
  void Only(std::vector<std::string> those, const CLI::Option* option);
  // Throws std::invalid_argument for an option that says nothing to the layout.
  void Check() const;
  std::vector<ScienceProblem> Read() const {
    std::vector<ScienceProblem> read = problems.Read();
    if (!captions.empty()) AddCaptions(captions, read);
    return read;
  }
};

struct ConvertFlags {
  PromptFlags prompts;
  std::string out;
};

struct RunFlags {
  PromptFlags prompts;
  std::string pictures;
  AnswerFlags answer;
};

std::vector<ScienceProblem> Shots(const PromptFlags& flags) {
  std::vector<ScienceProblem> from =
      ReadScienceProblems(flags.problems.problems, flags.problems.splits, flags.shot_split);
  if (!flags.captions.empty()) AddCaptions(flags.captions, from);
  std::vector<ScienceProblem> shots;
  if (flags.shot_ids.empty()) {
    Random random(flags.seed);
    random.Shuffle(from);
    from.resize(std::min<size_t>(from.size(), static_cast<size_t>(flags.shots)));
    return from;
  }
  for (const std::string& id : flags.shot_ids) {
    const auto found = std::find_if(from.begin(), from.end(),
                                    [&id](const ScienceProblem& one) { return one.id == id; });
    if (found == from.end()) {
      throw std::invalid_argument("--shot-ids: \"" + flags.shot_split + "\" has no problem " + id);
    }
    shots.push_back(*found);
  }
  return shots;
}

// A record of instruction data.
Json Record(const ScienceProblem& problem, const PromptFlags& flags, const ScienceFormat& format) {
  return flags.layout == "letter" ? ScienceLetterRecord(problem, flags.last_line)
                                  : ScienceRecord(problem, format);
}

int Convert(const ConvertFlags& flags) {
  const PromptFlags& prompts = flags.prompts;
  prompts.Check();
  const ScienceFormat format(prompts.format);
  const std::vector<ScienceProblem> problems = prompts.Read();
  std::string content;
  if (prompts.layout == "llava" || prompts.layout == "letter") {
    Json records = Json::array();
    for (const ScienceProblem& problem : problems) {
      records.push_back(Record(problem, prompts, format));
    }
    content = records.dump(2, ' ', /*ensure_ascii=*/true);
  } else {
    const std::vector<ScienceProblem> shots =
        prompts.layout == "chat" ? Shots(prompts) : std::vector<ScienceProblem>();
    for (const ScienceProblem& problem : problems) {
      const Json line =
          prompts.layout == "chat"
              ? Json{{"question_id", problem.id}, {"messages", ScienceChat(problem, shots, format)}}
              : ScienceInstruction(problem, format);
      content += line.dump(-1, ' ', /*ensure_ascii=*/true) + "\n";
    }
  }
  WriteDurably(flags.out, content);
  std::fprintf(stderr, "%s: %zu problems\n", flags.out.c_str(), problems.size());
  return 0;
}

int Run(const RunFlags& flags) {
  const PromptFlags& prompts = flags.prompts;
  prompts.Check();
  const ScienceFormat format(prompts.format);
  const std::vector<ScienceProblem> shots =
      prompts.layout == "chat" ? Shots(prompts) : std::vector<ScienceProblem>();
  std::vector<VisualQuestion> questions;
  for (const ScienceProblem& problem : prompts.Read()) {
    if (prompts.layout != "chat") {
      questions.push_back(
          QuestionOfRecord(Record(problem, prompts, format).dump(), flags.pictures));
      questions.back().answer_cue = prompts.layout == "llava" ? format.answer_cue() : "";
      continue;
    }
    VisualQuestion question{.id = problem.id, .text = "", .picture = "", .messages = {}};
    for (const Json& message : ScienceChat(problem, shots, format)) {
      question.messages.push_back(
          {message["role"].get<std::string>(), message["content"].get<std::string>(), {}});
    }
    questions.push_back(std::move(question));
  }
  return flags.answer.Answer(std::move(questions), ScienceSentence);
}

void AddScore(CLI::App& app, ScoreFlags& flags) {
  flags.problems.Add(app);
  app.add_option("--predictions", flags.predictions,
                 "Result file (\"results\", \"outputs\") or JSON lines (\"question_id\", \"text\")")
      ->required();
  app.add_option("--second", flags.second,
                 "Answers of a model that reads only, as GPT-4 in the paper: adds \"complement\"")
      ->group("Ensemble");
  app.add_option("--verdicts", flags.verdicts, "Its last word where both differ: adds \"judge\"")
      ->group("Ensemble");
  app.add_flag("--texts", flags.texts,
               "Read the choices from the texts, even if the file has both");
  app.add_flag("--lenient", flags.lenient, "Read more spellings than the published evaluation");
  app.add_flag("--json", flags.json, "Print JSON instead of a table");
}

const std::map<std::string, std::string> kLayouts = {
    {"llava", "as LLaVA was trained"},
    {"lines", "the same as \"instruction\" and \"output\""},
    {"letter", "as LLaVA 1.5 is asked"},
    {"chat", "messages for a model without eyes"}};

void PromptFlags::Add(CLI::App& app, const std::vector<std::string>& layouts) {
  problems.Add(app);
  std::string help;
  for (const std::string& known : layouts) {
    help += (help.empty() ? "" : "; ") + known + ": " + kLayouts.at(known);
  }
  app.add_option("--layout", layout, help)->check(CLI::IsMember(layouts))->capture_default_str();
  Only({"llava", "lines", "chat"},
       app.add_option("--format", format,
                      "What is told and answered, but in \"letter\": QCM-A, QCM-ALE, QCM-LEA, "
                      "QCM-LEPA, CQM-A ..")
           ->capture_default_str());
  Only({"llava", "lines", "chat"},
       app.add_option("--captions", captions,
                      "File captions.json: captions in the context, but in \"letter\""));
  Only({"letter"},
       app.add_option("--last-line", last_line,
                      "Line behind the choices of \"letter\": the request that the model was "
                      "trained on"));
  CLI::Option* ids =
      app.add_option("--shot-ids", shot_ids, "These, separated by commas, instead of drawn ones")
          ->delimiter(',')
          ->group("Examples");
  Only({"chat"}, ids);
  Only({"chat"}, app.add_option("--shots", shots, "Examples of \"chat\"")
                     ->check(CLI::Range(0, 100))
                     ->capture_default_str()
                     ->excludes(ids)
                     ->group("Examples"));
  Only({"chat"}, app.add_option("--shot-split", shot_split, "Where they are drawn")
                     ->capture_default_str()
                     ->group("Examples"));
  Only({"chat"}, app.add_option("--seed", seed, "Of the draw")
                     ->capture_default_str()
                     ->excludes(ids)
                     ->group("Examples"));
}

void PromptFlags::Only(std::vector<std::string> those, const CLI::Option* option) {
  some.emplace_back(option, std::move(those));
}

void PromptFlags::Check() const {
  for (const auto& [option, those] : some) {
    if (option->count() == 0 || std::find(those.begin(), those.end(), layout) != those.end()) {
      continue;
    }
    std::string names;
    for (const std::string& name : those) names += (names.empty() ? "" : ", ") + name;
    throw std::invalid_argument(option->get_name() + " goes with --layout " + names +
                                ", not with " + layout);
  }
}

}  // namespace

std::function<int()> AddScienceQaCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("scienceqa", "Multiple-choice questions of science, as in the paper");
  command->require_subcommand(1);
  const auto score_flags = std::make_shared<ScoreFlags>();
  CLI::App* score =
      command->add_subcommand("score", "Accuracy by class, of one file or an ensemble");
  AddScore(*score, *score_flags);
  const auto convert_flags = std::make_shared<ConvertFlags>();
  CLI::App* convert = command->add_subcommand("convert", "Problems as questions with answers");
  convert_flags->prompts.Add(*convert, {"llava", "lines", "letter", "chat"});
  convert->add_option("--out", convert_flags->out, "File to write")->required();
  const auto run_flags = std::make_shared<RunFlags>();
  CLI::App* run = command->add_subcommand("run", "Answers of a checkpoint or a server");
  run_flags->prompts.Add(*run, {"llava", "letter", "chat"});
  run_flags->prompts.Only({"llava", "letter"}, run->add_option("--pictures", run_flags->pictures,
                                                               "Folder of the split's pictures"));
  run_flags->answer.Add(*run);
  return [=] {
    if (score->parsed()) return Score(*score_flags);
    return convert->parsed() ? Convert(*convert_flags) : Run(*run_flags);
  };
}

}  // namespace llava
