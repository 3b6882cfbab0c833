// What is in a scene, and how many of it.
#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "model/data/scenes/question_parts.h"

namespace llava {
namespace {

using enum QuestionType;

// Shares kept of questions by the number they ask for. The largest number a scene has is tried
// first: so answers are about equally frequent although few scenes have repeats.
constexpr std::array<double, kNumberWords> kKeepCount = {0.15, 0.15, 0.6, 1, 1};
constexpr std::array<double, kNumberWords> kKeepGroup = {0.15, 0.4, 1, 1, 1};
constexpr double kAbsentOfOtherGroup = 0.3;  // absent things are asked for mostly if they are near

struct Group {
  std::string_view name, plural;
};
constexpr std::array<Group, 3> kCountedGroups = {
    {{"animal", "animals"}, {"fruit", "fruits"}, {"vehicle", "vehicles"}}};

}  // namespace

std::optional<Questioner::Count> Questioner::DrawCount(const Scene& scene,
                                                       std::optional<int> except,
                                                       Random& random) const {
  const auto counts = CountCategories(scene);
  for (int number = kMaxObjects; number >= 0; --number) {
    std::vector<int> categories;
    if (number > 0) {
      for (const auto& [category, count] : counts) {
        if (count == number && category != except) categories.push_back(category);
      }
    } else {
      for (int i = 0; i < num_categories_; ++i) {
        if (CountOf(scene, i) == 0 && i != except) categories.push_back(i);
      }
    }
    if (!categories.empty() && random.Chance(kKeepCount[number])) {
      return Count{random.Pick(categories), number};
    }
  }
  return std::nullopt;
}

std::optional<Turn> Questioner::AskContent(const Scene& scene, QuestionType type,
                                           Random& random) const {
  const auto turn = [&](std::initializer_list<std::string_view> parts, std::string answer) {
    return Turn{type, Fill(random.Pick(WordingsOf(type)), parts), std::move(answer)};
  };
  switch (type) {
    case kWhat:
      return turn({}, Capitalized(ListThings(scene)) + ".");
    case kThis:
      if (scene.objects.size() != 1) return std::nullopt;
      return turn({}, Capitalized(ListThings(scene)) + ".");
    case kBrief: {
      if (more_.brief.empty()) return std::nullopt;
      const std::string& question = random.Pick(more_.brief);
      return Turn{type, question, Capitalized(Caption(scene, random)) + "."};
    }
    case kDetail: {
      const auto description = DetailedDescription(scene);
      if (!description) return std::nullopt;
      const auto builtin = WordingsOf(type);
      const size_t choice =
          random.Below(static_cast<uint32_t>(builtin.size() + more_.detailed.size()));
      return Turn{type,
                  choice < builtin.size() ? std::string(builtin[choice])
                                          : more_.detailed[choice - builtin.size()],
                  *description};
    }
    case kCount: {
      const auto count = DrawCount(scene, std::nullopt, random);
      if (!count) return std::nullopt;
      return turn({Categories()[count->category].plural}, CountAnswer(count->number));
    }
    case kTotal:
      return turn({}, CountAnswer(static_cast<int>(scene.objects.size())));
    case kGroupCount: {
      const Group& group = random.Pick(kCountedGroups);
      const auto number =
          std::count_if(scene.objects.begin(), scene.objects.end(), [&](const SceneObject& object) {
            return Categories()[object.category].group == group.name;
          });
      if (!random.Chance(kKeepGroup[number])) return std::nullopt;
      return turn({group.plural}, CountAnswer(static_cast<int>(number)));
    }
    case kExist: {
      const bool exists = random.Chance(0.5);
      const int present = random.Pick(scene.objects).category;
      if (exists) return turn({WithArticle(Categories()[present])}, "Yes.");
      std::vector<int> absent;
      for (int i = 0; i < num_categories_; ++i) {
        const bool near = Categories()[i].group == Categories()[present].group;
        if (CountOf(scene, i) == 0 && (near || random.Chance(kAbsentOfOtherGroup)))
          absent.push_back(i);
      }
      return turn({WithArticle(Categories()[random.Pick(absent)])}, "No.");
    }
    default:  // kBackground
      return turn({}, "It is " + std::string(kBackgrounds[scene.background].name) + ".");
  }
}

}  // namespace llava
