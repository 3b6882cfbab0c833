#include "model/eval/commands.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/data/questions/question_lists.h"
#include "model/data/scenes/scene_flags.h"
#include "model/digest/sha256.h"
#include "model/eval/chat_quality.h"
#include "model/eval/text_map.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

// What the flags hold before it is checked.
struct Flags {
  std::string model, tower;
  QualityOptions quality;
  std::vector<std::string> conditions = {"picture", "blind", "majority", "oracle"};
  std::string oracle_map, oracle_model, mistakes;
  SceneFlags scenes;
  std::string brief_questions;
  bool json = false;
};

LanguageCheckpoint OpenModel(const std::string& path, const TowerCheckpoint& tower) {
  LanguageCheckpoint checkpoint = OpenLanguage(path, {.tower = {}, .chat_template = {}});
  if (checkpoint.tower_digest != tower.digest) {
    throw std::invalid_argument(path + " was trained with the tower " +
                                ToHex(checkpoint.tower_digest) + "; --tower " + tower.name +
                                " is " + ToHex(tower.digest) + ": name the one it belongs to");
  }
  return checkpoint;
}

Json Settings(const Flags& flags, const LanguageCheckpoint& model, const TowerCheckpoint& tower,
              double seconds) {
  const ExamOptions& exam = flags.quality.exam;
  return {{"model", flags.model},
          {"model_digest", ToHex(model.digest)},
          {"tower", flags.tower},
          {"tower_digest", ToHex(tower.digest)},
          {"oracle_map", flags.oracle_map.empty() ? Json() : Json(flags.oracle_map)},
          {"oracle_model", flags.oracle_model.empty() ? Json() : Json(flags.oracle_model)},
          {"seed", exam.seed},
          {"per_type", exam.per_type},
          {"categories", exam.scenes.num_categories},
          {"objects", {exam.scenes.min_objects, exam.scenes.max_objects}},
          {"repeats", exam.scenes.repeats},
          {"positions", flags.scenes.positions()},
          {"held_out", flags.scenes.held_out()},
          {"conditions", flags.conditions},
          {"seconds", seconds}};
}

Json MistakeJson(const Scene& scene, const Turn& turn, const std::string& given) {
  Json things = Json::array();
  for (const SceneObject& object : scene.objects) {
    things.push_back({{"name", Categories()[object.category].name},
                      {"size", object.size},
                      {"x", object.x},
                      {"y", object.y}});
  }
  return {{"type", NameOf(turn.type)},   {"question", turn.question},
          {"right", turn.answer},        {"given", given},
          {"things", std::move(things)}, {"background", kBackgrounds[scene.background].name}};
}

int Measure(Flags& flags) {
  QualityOptions& quality = flags.quality;
  quality.exam.scenes = flags.scenes.Options();
  quality.exam.wordings.brief = BriefQuestions(flags.brief_questions);
  const auto measured = [&flags](const char* condition) {
    return std::find(flags.conditions.begin(), flags.conditions.end(), condition) !=
           flags.conditions.end();
  };
  if (!measured("picture")) {
    throw std::invalid_argument("--conditions without \"picture\": there would be nothing to " +
                                std::string("compare the baselines with"));
  }
  quality.blind = measured("blind");
  quality.majority = measured("majority");

  const TowerCheckpoint tower_checkpoint = OpenTower(flags.tower);
  const LanguageCheckpoint checkpoint = OpenModel(flags.model, tower_checkpoint);
  const ClipTower tower(tower_checkpoint.config, tower_checkpoint.tensors, at::kCPU, at::kFloat);
  const Llava model(checkpoint, at::kCPU, at::kFloat);
  std::optional<Llava> oracle_model;
  std::optional<TextMap> map;
  if (measured("oracle") && !flags.oracle_map.empty()) {
    if (!flags.oracle_model.empty()) {
      oracle_model.emplace(OpenLanguage(flags.oracle_model), at::kCPU, at::kFloat);
    }
    const Llava& asked = oracle_model ? *oracle_model : model;
    map.emplace(asked.tokenizer(), flags.oracle_map);
    quality.oracle_model = &asked;
    quality.oracle = [&asked, &map](const Scene& scene) {
      return map->Embed(asked.decoder(), {&scene, 1})[0];
    };
  } else if (!flags.oracle_map.empty() || !flags.oracle_model.empty()) {
    throw std::invalid_argument(flags.oracle_map.empty()
                                    ? "--oracle-model needs --oracle-map"
                                    : "--oracle-map needs \"oracle\" among the --conditions");
  }

  std::ofstream mistakes;
  if (!flags.mistakes.empty()) {
    mistakes.open(flags.mistakes);
    if (!mistakes) throw std::runtime_error("cannot write " + flags.mistakes);
    quality.mistaken = [&mistakes](const Scene& scene, const Turn& turn, const std::string& given) {
      mistakes << MistakeJson(scene, turn, given).dump() << "\n";
    };
  }
  quality.progress = stderr;
  const auto begin = std::chrono::steady_clock::now();
  const Quality result =
      MeasureQuality(model, TowerEye(tower, checkpoint.config.features), quality);
  if (mistakes.is_open()) {
    mistakes.close();
    if (!mistakes) throw std::runtime_error(flags.mistakes + ": not all mistakes could be written");
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (flags.json) {
    const Json json = QualityJson(result, Settings(flags, checkpoint, tower_checkpoint, seconds));
    std::printf("%s\n", json.dump(2).c_str());
  } else {
    std::printf("%s\n%s, %zu x %d questions, seed %llu, %.0f s\n", QualityTable(result).c_str(),
                flags.model.c_str(), result.types.size(), quality.exam.per_type,
                static_cast<unsigned long long>(quality.exam.seed), seconds);
  }
  return 0;
}

}  // namespace

std::function<int()> AddChatQualityCommand(CLI::App& app) {
  const auto flags = std::make_shared<Flags>();
  ExamOptions& exam = flags->quality.exam;
  CLI::App* command = app.add_subcommand(
      "chat-quality", "Right answers about emoji scenes that nobody has seen, by type of question");
  command->add_option("MODEL", flags->model, "Folder of the language model")->required();
  command->add_option("--tower", flags->tower, "Folder of its vision tower")->required();

  command->add_option("--per-type", exam.per_type, "Questions of each type, and whole chains")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str()
      ->group("Questions");
  command
      ->add_option("--mistakes", flags->mistakes,
                   "File for every wrong answer about a picture, a JSON object a line")
      ->group("Questions");
  command
      ->add_option("--conditions", flags->conditions,
                   "What to measure, separated by commas: picture, blind (features of zeros), "
                   "majority (the commonest answer), oracle (with --oracle-map)")
      ->delimiter(',')
      ->check(CLI::IsMember({"picture", "blind", "majority", "oracle"}))
      ->capture_default_str()
      ->group("Questions");
  command
      ->add_option("--oracle-map", flags->oracle_map,
                   "File of a text map: perfect words in place of the picture")
      ->group("Questions");
  command
      ->add_option("--oracle-model", flags->oracle_model,
                   "Folder of the model that reads the map, if not MODEL")
      ->group("Questions");
  command
      ->add_option("--brief-questions", flags->brief_questions,
                   "File with questions for captions, one a line, instead of the built-in ones")
      ->group("Questions");

  command->add_option("--seed", exam.seed, "Stream of scenes, never one of training")
      ->capture_default_str()
      ->group("Scenes");
  flags->scenes.Add(*command);

  command->add_flag("--json", flags->json, "Print JSON instead of a table");
  command->add_option("--threads", flags->quality.threads, "Threads; 0 is one a core")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  return [flags] { return Measure(*flags); };
}

}  // namespace llava
