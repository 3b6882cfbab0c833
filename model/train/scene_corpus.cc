#include "model/train/scene_corpus.h"

#include <set>

#include "model/data/questions/question_lists.h"
#include "model/data/scenes/captions.h"
#include "model/data/scenes/category.h"
#include "model/data/scenes/questions.h"
#include "model/data/scenes/random.h"
#include "model/data/scenes/scene.h"

namespace llava {
namespace {

constexpr uint64_t kScenes = 41, kWords = 42, kFacts = 43;  // purposes of the random streams
constexpr size_t kTurns = 6;                                // of a scene's conversation
constexpr int kRepeats = 60;                                // of the words that must be pieces

}  // namespace

std::vector<std::string> SceneWords(int num_categories) {
  std::set<std::string> words = {"small", "big",    "part",   "background", "left",   "right",
                                 "top",   "bottom", "center", "picture",    "bigger", "smaller"};
  for (const char* answer : {"yes", "no", "none", "above", "below"}) {
    words.insert({answer, Capitalized(answer)});
  }
  for (int i = 0; i < num_categories; ++i) {
    const Category& category = Categories()[i];
    words.insert({category.name, category.plural, category.colour, category.group});
  }
  for (const Background& background : kBackgrounds) words.emplace(background.name);
  for (int number = 1; number < kNumberWords; ++number) {
    words.insert({std::string(NumberWord(number)), Capitalized(std::string(NumberWord(number)))});
  }
  return {words.begin(), words.end()};
}

std::vector<std::string> SceneCorpus(int num_categories, int64_t scenes, uint64_t seed) {
  SceneOptions options;
  options.num_categories = num_categories;
  const Questioner questioner(num_categories, {BriefQuestions(), DetailedQuestions()});
  std::vector<std::string> lines;
  const uint64_t scene_seed = Random(seed, 0, kScenes).Bits();
  for (int64_t i = 0; i < scenes; ++i) {
    const auto number = static_cast<uint64_t>(i);
    const Scene scene = SampleScene(options, scene_seed, number);
    Random random(seed, number, kWords);
    for (const Turn& turn : questioner.Converse(scene, kTurns, random)) {
      lines.push_back(turn.question);
      lines.push_back(turn.answer);
    }
    lines.push_back(Caption(scene, random));
  }
  Random random(seed, 0, kFacts);
  for (int64_t i = 0; i < scenes / 2; ++i) {
    const Turn turn = questioner.AskFact(random);
    lines.push_back(turn.question);
    lines.push_back(turn.answer);
  }
  for (const std::string& word : SceneWords(num_categories)) {
    for (int i = 0; i < kRepeats; ++i) lines.push_back(word + " " + word);
  }
  return lines;
}

}  // namespace llava
