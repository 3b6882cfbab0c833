// Questions that need the picture and a fact about the world.
#include <algorithm>
#include <array>
#include <set>

#include "model/data/scenes/question_parts.h"

namespace llava {
namespace {

using enum QuestionType;

constexpr std::array<std::string_view, 2> kOnlyThing = {"this thing", "the thing in the picture"};
constexpr double kKeepNone = 0.25;   // of "which can you eat" where nothing can be eaten
constexpr double kKeepUnlike = 0.4;  // of "are all of the same kind" where they are not

// Thins out the commoner answer.
bool KeepFair(bool yes, double share_of_yes, Random& random) {
  const double odds = (1 - share_of_yes) / share_of_yes;
  return random.Chance(yes ? odds : 1 / odds);
}

}  // namespace

std::optional<Turn> Questioner::AskAbout(const Category& category, QuestionType fact,
                                         std::string_view subject, Random& random) const {
  const auto turn = [&](std::string answer) {
    return Turn{fact, Fill(random.Pick(WordingsOf(fact)), {subject}), std::move(answer)};
  };
  if (fact == kKind) return turn("It is " + KindPhrase(category.group) + ".");
  if (fact == kColour) return turn("It is " + category.colour + ".");
  const bool yes = fact == kEat ? category.edible : fact == kFly ? category.flies : category.alive;
  const double share = fact == kEat ? edible_ : fact == kFly ? flying_ : living_;
  if (!KeepFair(yes, share, random)) return std::nullopt;
  return turn(yes ? "Yes." : "No.");
}

std::optional<Turn> Questioner::AskReasoning(const Scene& scene, QuestionType type,
                                             Random& random) const {
  const auto turn = [&](std::string answer) {
    return Turn{type, std::string(random.Pick(WordingsOf(type))), std::move(answer)};
  };
  if (type <= kAlive) {
    if (scene.objects.size() == 1) {
      const std::string_view subject = random.Pick(kOnlyThing);
      return AskAbout(Categories()[scene.objects[0].category], type, subject, random);
    }
    const Side side = random.Pick(kSides);
    const SceneObject* object = Outermost(scene, side);
    if (object == nullptr) return std::nullopt;
    const std::string subject = "the thing " + std::string(SidePhrase(side));
    return AskAbout(Categories()[object->category], type, subject, random);
  }

  const auto counts = CountCategories(scene);
  if (counts.size() < 2) return std::nullopt;
  if (type == kSame) {
    std::set<std::string_view> groups;
    for (const auto& [category, number] : counts) groups.insert(Categories()[category].group);
    const bool same = groups.size() == 1;
    if (!same && !random.Chance(kKeepUnlike)) return std::nullopt;
    return turn(same ? "Yes." : "No.");
  }
  std::vector<int> able;
  for (const auto& [category, number] : counts) {
    const Category& one = Categories()[category];
    if (type == kWhichEat ? one.edible : one.flies) able.push_back(category);
  }
  if (able.size() > 1 || (able.empty() && !random.Chance(kKeepNone))) return std::nullopt;
  return turn(able.empty() ? "None." : "The " + Categories()[able[0]].name + ".");
}

}  // namespace llava
