// Where things are, and which is the bigger one.
#include "model/data/scenes/question_parts.h"

namespace llava {
namespace {

using enum QuestionType;

// Objects of which there is only one of their kind, so that "the lion" says which.
std::vector<const SceneObject*> UniqueObjects(const Scene& scene) {
  std::vector<const SceneObject*> unique;
  for (const auto& [category, number] : CountCategories(scene)) {
    if (number > 1) continue;
    for (const SceneObject& object : scene.objects) {
      if (object.category == category) unique.push_back(&object);
    }
  }
  return unique;
}

}  // namespace

std::optional<Turn> Questioner::AskPosition(const Scene& scene, QuestionType type,
                                            Random& random) const {
  const auto turn = [&](std::initializer_list<std::string_view> parts, std::string answer) {
    return Turn{type, Fill(random.Pick(WordingsOf(type)), parts), std::move(answer)};
  };
  if (type == kSide) {
    const Side side = random.Pick(kSides);
    const SceneObject* object = Outermost(scene, side);
    if (object == nullptr) return std::nullopt;
    return turn({SidePhrase(side)}, NamingAnswer(*object));
  }

  auto unique = UniqueObjects(scene);
  random.Shuffle(unique);
  if (type == kWhere) {
    if (unique.empty()) return std::nullopt;
    const auto place = PlacePhrase(*unique[0]);
    if (!place) return std::nullopt;
    return turn({Categories()[unique[0]->category].name}, Capitalized(*place) + ".");
  }

  if (unique.size() < 2) return std::nullopt;
  const SceneObject& a = *unique[0];
  const SceneObject& b = *unique[1];
  const std::string& name_a = Categories()[a.category].name;
  const std::string& name_b = Categories()[b.category].name;
  if (type == kBigger) {
    if (a.big == b.big) return std::nullopt;
    const bool bigger = random.Chance(0.5);
    const SceneObject& right = a.big == bigger ? a : b;
    return turn({bigger ? "bigger" : "smaller", name_a, name_b},
                "The " + Categories()[right.category].name + ".");
  }
  const int order = Order(a, b, type == kAbove ? Axis::kVertical : Axis::kHorizontal);
  if (order == 0) return std::nullopt;
  if (type == kAbove) return turn({name_a, name_b}, order < 0 ? "Above." : "Below.");
  const std::string_view side = order < 0 ? "left" : "right";
  if (type == kSideOf) return turn({name_a, name_b}, "On the " + std::string(side) + ".");
  if (scene.objects.size() != 2) return std::nullopt;  // kLeftOf: one answer only
  return turn({side, name_b}, NamingAnswer(a));
}

}  // namespace llava
