#include "model/train/map_lessons.h"

#include <cmath>
#include <string>
#include <utility>

#include "model/data/questions/question_lists.h"
#include "model/data/scenes/random.h"

namespace llava {
namespace {

using enum QuestionType;

// Purposes of the random streams.
constexpr uint64_t kTrainedScenes = 11, kTrainedWords = 12, kTrainedFacts = 13;
constexpr uint64_t kHeldOutScenes = 14, kHeldOutWords = 15, kHeldOutQuestions = 16;
constexpr int kTries = 20;  // for a question that a scene may not allow

// Selecting and comparing take most of the learning; types that few scenes allow weigh more.
constexpr TypeWeight kDense[] = {
    {kWhat, 2},   {kTotal, 1},    {kBackground, 0.3}, {kCount, 6}, {kGroupCount, 2}, {kExist, 3},
    {kSide, 4.5}, {kLeftOf, 5},   {kSideOf, 8},       {kAbove, 8}, {kWhere, 5},      {kBigger, 5},
    {kKind, 1},   {kColour, 0.5}, {kBrief, 0},        {kSame, 0},
};

SceneOptions Options(int num_categories) {
  SceneOptions options;
  options.num_categories = num_categories;
  return options;
}

MoreWordings AllWordings() { return {BriefQuestions(), DetailedQuestions()}; }

}  // namespace

LessonSettings LessonSettings::From(Recipe& recipe) {
  LessonSettings s;
  s.num_categories = static_cast<int>(
      recipe.Int("categories", s.num_categories, "categories of the scenes: 48 or 96", 48, 96));
  s.repeats = recipe.Number("repeats", s.repeats,
                            "share of the scenes in which categories may repeat", 0, 1);
  s.rows = recipe.Int("rows", s.rows, "rows with a map in a micro-batch", 1, 1 << 16);
  s.most_tokens = recipe.Int("row_tokens", s.most_tokens, "most tokens of a row", 64, 1 << 16);
  s.dense_steps = recipe.Int("dense_steps", s.dense_steps,
                             "first steps, whose rows are many independent short questions");
  s.questions =
      recipe.Int("dense_questions", s.questions, "questions of a row in those steps", 1, 1 << 10);
  for (const auto& [type, weight] : kDense) {
    s.dense_types.emplace_back(type,
                               recipe.Number("dense." + std::string(NameOf(type)), weight,
                                             "how often such a question is tried in those steps"));
  }
  s.dense_share = recipe.Number("dense_share", s.dense_share,
                                "share of the later rows that are still of this kind", 0, 1);
  s.dialogues = recipe.Int("dialogues", s.dialogues, "dialogues of a later row", 1, 1 << 10);
  s.fact_share = recipe.Number("fact_share", s.fact_share,
                               "later rows of facts without a picture, as a share of \"rows\"", 0);
  s.facts = recipe.Int("facts", s.facts, "questions of a row of facts", 1, 1 << 10);
  s.key_weight = recipe.Number("key_weight", s.key_weight,
                               "weight in the loss of the words that make an answer right");
  return s;
}

MapLessons::MapLessons(const LessonSettings& settings, std::shared_ptr<const Tokenizer> tokenizer,
                       std::shared_ptr<const ChatTemplate> chat_template, uint64_t seed)
    : settings_(settings),
      rows_(std::move(tokenizer), std::move(chat_template), settings.key_weight),
      questioner_(settings.num_categories, AllWordings()),
      seed_(seed) {}

std::vector<Dialogue> MapLessons::AskDensely(const Scene& scene, Random& random) const {
  std::vector<Dialogue> dialogues;
  for (int64_t i = 0; i < settings_.questions; ++i) {
    if (auto turn = questioner_.AskOneOf(scene, settings_.dense_types, random)) {
      dialogues.push_back({*std::move(turn)});
    }
  }
  return dialogues;
}

MapBatch MapLessons::Make(int64_t step, int64_t index) const {
  const bool dense_only = step < settings_.dense_steps;
  SceneOptions scenes = Options(settings_.num_categories);
  scenes.repeats = settings_.repeats;
  MapBatch batch;
  for (int64_t i = 0; i < settings_.rows; ++i) {
    const auto number = static_cast<uint64_t>(index * settings_.rows + i);
    const Scene scene = SampleScene(scenes, Random(seed_, 0, kTrainedScenes).Bits(), number);
    Random random(seed_, number, kTrainedWords);
    std::vector<Dialogue> dialogues;
    if (dense_only || random.Chance(settings_.dense_share)) {
      dialogues = AskDensely(scene, random);
    } else {
      for (int64_t k = 0; k < settings_.dialogues; ++k) {
        dialogues.push_back(questioner_.ShortDialogue(scene, random));
      }
    }
    rows_.AddScene(scene, dialogues, settings_.most_tokens, batch);
  }
  if (dense_only) return batch;
  Random random(seed_, static_cast<uint64_t>(index), kTrainedFacts);
  const auto fact_rows =
      static_cast<int64_t>(std::ceil(settings_.fact_share * static_cast<double>(settings_.rows)));
  for (int64_t i = 0; i < fact_rows; ++i) {
    std::vector<Dialogue> facts;
    for (int64_t k = 0; k < settings_.facts; ++k) facts.push_back({questioner_.AskFact(random)});
    rows_.AddFacts(facts, settings_.most_tokens, batch);
  }
  return batch;
}

Scene MapLessons::HeldOutScene(int64_t number) const {
  SceneOptions scenes = Options(settings_.num_categories);
  if (number % 2 != 0) scenes.held_out = SceneOptions::HeldOut::kPairs;
  return SampleScene(scenes, Random(seed_, 0, kHeldOutScenes).Bits(),
                     static_cast<uint64_t>(number));
}

MapBatch MapLessons::HeldOut(int64_t first, int64_t count) const {
  MapBatch batch;
  for (int64_t i = first; i < first + count; ++i) {
    const Scene scene = HeldOutScene(i);
    Random random(seed_, static_cast<uint64_t>(i), kHeldOutWords);
    std::vector<Dialogue> dialogues;
    for (const auto& [type, weight] : NaturalMixture()) {
      for (int k = 0; k < kTries; ++k) {
        if (auto turn = questioner_.Ask(scene, type, random)) {
          dialogues.push_back({*std::move(turn)});
          break;
        }
      }
    }
    if (auto chain = questioner_.AskChain(scene, random)) dialogues.push_back(*std::move(chain));
    rows_.AddScene(scene, dialogues, /*most_tokens=*/int64_t{1} << 20, batch);
  }
  return batch;
}

std::vector<MapLessons::Question> MapLessons::HeldOutQuestions(int64_t each) const {
  constexpr int64_t kScenesPerQuestion = 50;  // before a type is given up
  std::vector<Question> questions;
  for (const auto& [type, weight] : NaturalMixture()) {
    int64_t found = 0;
    for (int64_t i = 0; i < each * kScenesPerQuestion && found < each; ++i) {
      Scene scene = HeldOutScene(i);
      Random random(seed_, static_cast<uint64_t>(i), kHeldOutQuestions);
      auto turn = questioner_.Ask(scene, type, random);
      if (!turn) continue;
      questions.push_back({std::move(scene), *std::move(turn)});
      ++found;
    }
  }
  return questions;
}

}  // namespace llava
