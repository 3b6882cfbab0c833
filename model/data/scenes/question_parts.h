#pragma once

// What the files of questions share.

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "model/data/scenes/captions.h"
#include "model/data/scenes/questions.h"

namespace llava {

inline constexpr std::array<Side, 4> kSides = {Side::kLeft, Side::kRight, Side::kTop,
                                               Side::kBottom};

// Objects of the category.
inline int64_t CountOf(const Scene& scene, int category) {
  return std::count_if(scene.objects.begin(), scene.objects.end(),
                       [&](const SceneObject& object) { return object.category == category; });
}

// "A lion."
inline std::string NamingAnswer(const SceneObject& object) {
  return Capitalized(WithArticle(Categories()[object.category])) + ".";
}

}  // namespace llava
