#include "model/datagen/scene_problems.h"

#include <algorithm>
#include <array>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/data/scenes/captions.h"
#include "model/data/scenes/random.h"
#include "model/data/scenes/wording.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

// Purposes of random numbers.
constexpr uint64_t kSceneSeed = 0x73636971'7363656E;
constexpr uint64_t kProblem = 0x73636971'70726F62;

constexpr uint64_t kMostScenes = 256;  // that are tried for a problem
constexpr double kSkipOne = 0.6;       // of counts: else "one" would be right nearly always

// A problem in the making; the right choice is the first.
struct Draft {
  std::string question;
  std::vector<std::string> choices = {};
  std::string hint = {}, lecture = {}, solution = {};
  std::string subject = {}, topic = {}, skill = {};
};

const Category& At(int category) { return Categories()[static_cast<size_t>(category)]; }

// "a lion" or "lions".
std::string Some(int category, int number) {
  return number == 1 ? WithArticle(At(category)) : At(category).plural;
}

std::string Shows(const Scene& scene) {
  return "The picture shows " + ListPlaces(scene).value_or(ListThings(scene)) + ".";
}

// A category other than `not_these`, which it joins.
int Another(int num_categories, std::set<int>& not_these, Random& random) {
  for (;;) {
    const int category = random.Between(0, num_categories - 1);
    if (not_these.insert(category).second) return category;
  }
}

// ---- Kinds of problems. Nothing where the scene allows none.

struct Fact {
  bool Category::*holds;
  const char *question, *lecture, *skill;
};
constexpr std::array<Fact, 3> kFacts = {{
    {&Category::edible, "Is there something in the picture that you can eat?",
     "You can eat fruit and food.", "Tell what can be eaten"},
    {&Category::flies, "Is there something in the picture that can fly?",
     "Some animals and some vehicles can fly.", "Tell what can fly"},
    {&Category::alive, "Is there something in the picture that is alive?",
     "Animals and plants are alive.", "Tell what is alive"},
}};

// "yes" and "no", the right one first.
std::vector<std::string> YesOrNo(bool yes) {
  return yes ? std::vector<std::string>{"yes", "no"} : std::vector<std::string>{"no", "yes"};
}

// Of a scene where the answer is `wanted`.
std::optional<Draft> AskFact(const Scene& scene, bool wanted, Random& random) {
  const Fact& fact = random.Pick(kFacts);
  std::string what = "nothing here";
  int number = 1;
  for (const auto& [category, count] : CountCategories(scene)) {
    if (!(At(category).*fact.holds)) continue;
    number = count;
    what = "the " + (count == 1 ? At(category).name : At(category).plural);
    break;
  }
  const bool holds = what != "nothing here";
  if (holds != wanted) return std::nullopt;
  Draft draft{.question = fact.question, .choices = YesOrNo(holds)};
  draft.solution = Shows(scene) + " ";
  if (fact.holds == &Category::edible) {
    draft.solution += "You can eat " + what + ".";
  } else if (fact.holds == &Category::flies) {
    draft.solution += Capitalized(what) + " can fly.";
  } else {
    draft.solution += Capitalized(what) + (number == 1 ? " is alive." : " are alive.");
  }
  // Half of them tell the rule as a text to read, the others as what there is to know.
  (random.Chance(0.5) ? draft.hint : draft.lecture) = fact.lecture;
  draft.subject = "natural science";
  draft.topic = "biology";
  draft.skill = fact.skill;
  return draft;
}

std::optional<Draft> AskCount(const Scene& scene, Random& random) {
  const auto counts = CountCategories(scene);
  const auto& [category, number] = random.Pick(counts);
  if (number == 1 && random.Chance(kSkipOne)) return std::nullopt;
  Draft draft{.question = "How many " + At(category).plural + " are there?"};
  draft.choices.emplace_back(NumberWord(number));
  for (int other = 1; other <= kMaxObjects; ++other) {
    if (other != number) draft.choices.emplace_back(NumberWord(other));
  }
  draft.solution = Shows(scene) + (number == 1 ? " There is one " + At(category).name + "."
                                               : " There are " + draft.choices[0] + " " +
                                                     At(category).plural + ".");
  draft.subject = "natural science";
  draft.topic = "science-and-engineering-practices";
  draft.skill = "Count things";
  return draft;
}

Draft AskPresent(const Scene& scene, int num_categories, Random& random) {
  const auto counts = CountCategories(scene);
  std::set<int> known;
  for (const auto& one : counts) known.insert(one.first);
  const bool present = random.Chance(0.5);
  const auto [category, number] =
      present ? random.Pick(counts) : std::pair(Another(num_categories, known, random), 0);
  Draft draft{.question = "Is there " + WithArticle(At(category)) + " in the picture?",
              .choices = YesOrNo(present)};
  draft.solution = Shows(scene);
  if (present) {
    draft.solution += (number == 1 ? " There is " : " There are ") + Some(category, number) + ".";
  } else {
    draft.solution += " There is no " + At(category).name + ".";
  }
  draft.subject = "natural science";
  draft.topic = "biology";
  draft.skill = "Recognize things";
  return draft;
}

std::optional<Draft> AskSide(const Scene& scene, Random& random) {
  const size_t count = scene.objects.size();
  if (count < 2 || CountCategories(scene).size() != count || !ListPlaces(scene)) {
    return std::nullopt;  // "the lion" would be any of them
  }
  const auto one = random.Below(static_cast<uint32_t>(count));
  const auto other = (one + 1 + random.Below(static_cast<uint32_t>(count - 1))) % count;
  const SceneObject &a = scene.objects[one], &b = scene.objects[other];
  const bool across = random.Chance(0.5);
  const int order = Order(a, b, across ? Axis::kHorizontal : Axis::kVertical);
  if (order == 0) return std::nullopt;
  const std::string name = At(a.category).name, than = At(b.category).name;
  Draft draft{.question = across ? "Is the " + name + " to the left or to the right of the " + than
                                 : "Is the " + name + " above or below the " + than};
  draft.question += "?";
  draft.choices = across ? std::vector<std::string>{"left", "right"}
                         : std::vector<std::string>{"above", "below"};
  if (order > 0) std::swap(draft.choices[0], draft.choices[1]);
  draft.lecture = "A picture has a left and a right side, a top and a bottom.";
  draft.solution = Shows(scene) + " The " + name + " is " +
                   (across ? "to the " + draft.choices[0] + " of" : draft.choices[0]) + " the " +
                   than + ".";
  draft.subject = "social science";
  draft.topic = "geography";
  draft.skill = "Read maps";
  return draft;
}

Draft AskKind(int num_categories, Random& random) {
  constexpr std::array<const char*, 4> kKinds = {"animal", "fruit", "plant", "vehicle"};
  std::vector<int> drawn;
  std::set<std::string> groups;
  const auto wanted = static_cast<size_t>(random.Between(2, 3));
  while (drawn.size() < wanted) {
    const int category = random.Between(0, num_categories - 1);
    const std::string& group = At(category).group;
    const bool asked = std::find(kKinds.begin(), kKinds.end(), group) != kKinds.end();
    if (asked && groups.insert(group).second) drawn.push_back(category);
  }
  const auto sentence = [](int category) {
    const std::string& group = At(category).group;
    const char* article = group == "fruit" ? "" : group == "animal" ? "an " : "a ";
    return Capitalized(WithArticle(At(category))) + " is " + article + group + ".";
  };
  Draft draft{.question = "What kind of thing is " + WithArticle(At(drawn[0])) + "?"};
  draft.choices.push_back(At(drawn[0]).group);
  for (const char* kind : kKinds) {
    if (kind != draft.choices[0]) draft.choices.push_back(kind);
  }
  std::vector<std::string> sentences;
  for (const int category : drawn) sentences.push_back(sentence(category));
  draft.solution = sentences[0];
  random.Shuffle(sentences);
  for (const std::string& one : sentences) draft.hint += (draft.hint.empty() ? "" : " ") + one;
  draft.subject = "natural science";
  draft.topic = "biology";
  draft.skill = "Sort things by their kind";
  return draft;
}

Draft AskPlural(int num_categories, Random& random) {
  const Category& category = At(random.Between(0, num_categories - 1));
  Draft draft{.question = "What is the plural of " + category.name + "?"};
  draft.choices.push_back(category.plural);
  for (const char* ending : {"", "s", "es"}) {
    if (category.name + ending != category.plural) draft.choices.push_back(category.name + ending);
  }
  if (random.Chance(0.5)) std::swap(draft.choices[1], draft.choices.back());
  if (random.Chance(0.5)) draft.choices.pop_back();
  draft.lecture = "The plural tells of more than one.";
  draft.solution = "One " + category.name + ", two " + category.plural + ".";
  draft.subject = "language science";
  draft.topic = "grammar";
  draft.skill = "Form plurals";
  return draft;
}

// Numbers by size, words by the alphabet. Most problems have the same choices again and again, so
// that a letter has a meaning that a small model can learn.
bool StandsBefore(const std::string& a, const std::string& b) {
  const auto number = [](const std::string& word) {
    int number = 0;
    while (number < kNumberWords && NumberWord(number) != word) ++number;
    return number;
  };
  return std::pair(number(a), a) < std::pair(number(b), b);
}

Json Finished(Draft draft, bool picture, Random& random) {
  const std::string right = draft.choices[0];
  std::sort(draft.choices.begin(), draft.choices.end(), StandsBefore);
  const auto answer = std::find(draft.choices.begin(), draft.choices.end(), right);
  return {{"question", draft.question},
          {"choices", draft.choices},
          {"answer", answer - draft.choices.begin()},
          {"hint", draft.hint},
          {"image", picture ? Json("image.png") : Json()},
          {"task", "closed choice"},
          {"grade", "grade" + std::to_string(random.Between(1, 12))},
          {"subject", draft.subject},
          {"topic", draft.topic},
          {"category", draft.topic},
          {"skill", draft.skill},
          {"lecture", draft.lecture},
          {"solution", draft.solution}};
}

}  // namespace

SceneProblem MakeSceneProblem(const SceneOptions& scenes, uint64_t seed, uint64_t number) {
  scenes.Check();
  if (scenes.max_objects < 2) {
    throw std::invalid_argument("problems need scenes of two things at least");
  }
  Random random(seed, number, kProblem);
  // Of six, four have a picture.
  const uint64_t kind = number % 6;
  if (kind == 4) return {Finished(AskKind(scenes.num_categories, random), false, random), {}};
  if (kind == 5) return {Finished(AskPlural(scenes.num_categories, random), false, random), {}};
  const uint64_t scene_seed = Random(seed, 0, kSceneSeed).Bits();
  const bool wanted = random.Chance(0.5);
  for (uint64_t attempt = 0; attempt < kMostScenes; ++attempt) {
    const Scene scene = SampleScene(scenes, scene_seed, number * kMostScenes + attempt);
    std::optional<Draft> draft;
    if (kind == 0) draft = AskFact(scene, wanted, random);
    if (kind == 1) draft = AskCount(scene, random);
    if (kind == 2) draft = AskPresent(scene, scenes.num_categories, random);
    if (kind == 3) draft = AskSide(scene, random);
    if (draft) return {Finished(*std::move(draft), true, random), scene};
  }
  throw std::invalid_argument("none of " + std::to_string(kMostScenes) + " scenes allows problem " +
                              std::to_string(number));
}

}  // namespace llava
