#include "model/data/scenes/captions.h"

#include <algorithm>

#include "model/data/scenes/wording.h"

namespace llava {
namespace {

std::string OnBackground(const Scene& scene) {
  return " on a " + std::string(kBackgrounds[scene.background].name) + " background";
}

}  // namespace

std::vector<std::pair<int, int>> CountCategories(const Scene& scene) {
  std::vector<std::pair<int, int>> counts;
  for (const SceneObject& object : scene.objects) {
    const auto found = std::find_if(counts.begin(), counts.end(), [&](const auto& count) {
      return count.first == object.category;
    });
    if (found == counts.end()) {
      counts.emplace_back(object.category, 1);
    } else {
      ++found->second;
    }
  }
  return counts;
}

std::string ListThings(const Scene& scene) {
  std::vector<std::string> things;
  for (const auto& [index, number] : CountCategories(scene)) {
    const Category& category = Categories()[index];
    things.push_back(number == 1 ? WithArticle(category)
                                 : std::string(NumberWord(number)) + " " + category.plural);
  }
  return JoinWords(things);
}

std::optional<std::string> PlacePhrase(const SceneObject& object) {
  const auto across = HorizontalPlace(object);
  const auto down = VerticalPlace(object);
  if (!across || !down) return std::nullopt;
  if (down->empty() && across->empty()) return "in the center";
  if (down->empty()) return "on the " + std::string(*across);
  std::string place = "at the ";
  place += *down;
  if (!across->empty()) (place += ' ') += *across;
  return place;
}

std::optional<std::string> ListPlaces(const Scene& scene) {
  std::vector<std::string> things;
  for (const SceneObject& object : scene.objects) {
    const auto place = PlacePhrase(object);
    if (!place) return std::nullopt;
    things.push_back(WithArticle(Categories()[object.category]) + " " + *place);
  }
  return JoinWords(things);
}

std::optional<std::string> DetailedDescription(const Scene& scene) {
  const auto places = ListPlaces(scene);
  if (!places) return std::nullopt;
  return Capitalized(*places) + ". The background is " +
         std::string(kBackgrounds[scene.background].name) + ".";
}

std::string Caption(const Scene& scene, Random& random) {
  const double form = random.Uniform();
  if (form < 0.3) return ListThings(scene);
  if (form < 0.7) return ListThings(scene) + OnBackground(scene);
  return ListPlaces(scene).value_or(ListThings(scene));
}

std::vector<std::string> FiveCaptions(const Scene& scene) {
  const std::string things = ListThings(scene);
  const std::string on_background = OnBackground(scene);
  const bool one = scene.objects.size() == 1;
  return {
      Capitalized(things) + ".",
      Capitalized(things) + on_background + ".",
      Capitalized(ListPlaces(scene).value_or(things + " in a picture")) + ".",
      "A picture of " + things + ".",
      "There " + std::string(one ? "is " : "are ") + things + on_background + ".",
  };
}

}  // namespace llava
