#pragma once

// What a scene shows, in words.

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/data/scenes/random.h"
#include "model/data/scenes/scene.h"

namespace llava {

// Categories of a scene with their numbers, in the order in which they first appear.
std::vector<std::pair<int, int>> CountCategories(const Scene& scene);

// "a lion and two apples".
std::string ListThings(const Scene& scene);

// "on the left", "at the top left", "in the center"; nothing where that could be disputed.
std::optional<std::string> PlacePhrase(const SceneObject& object);

// "a lion at the top left and a lion on the right"; nothing if a place could be disputed.
std::optional<std::string> ListPlaces(const Scene& scene);

// "A lion at the top left. The background is white."; nothing as ListPlaces.
std::optional<std::string> DetailedDescription(const Scene& scene);

// A phrase for contrastive training: 30 % things, 40 % things and background, 30 % places (things
// instead, where a place could be disputed).
std::string Caption(const Scene& scene, Random& random);

// Five sentences that say what is there in other words each, as people do in COCO.
std::vector<std::string> FiveCaptions(const Scene& scene);

}  // namespace llava
