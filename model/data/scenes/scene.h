#pragma once

// Scenes: records of emoji on a background, from which pictures, labels, questions and answers are
// all made. A record is a pure function of options, seed and number: no picture need be stored.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "model/data/scenes/category.h"

namespace llava {

inline constexpr int kSceneSide = 96;                        // pixels of a scene, both ways
inline constexpr int kScenePatch = 16;                       // pixels of a cell, both ways
inline constexpr int kSceneGrid = kSceneSide / kScenePatch;  // cells a side
inline constexpr int kMaxObjects = 4;

struct SceneObject {
  int category = 0;
  int size = 0;             // longer side, pixels
  bool big = false;         // big: 42 .. 52 pixels; small: 28 .. 34
  int x = 0, y = 0;         // centre, pixels
  int column = 0, row = 0;  // cell of the centre
  bool mirrored = false;

  bool operator==(const SceneObject&) const = default;
};

struct Scene {
  std::vector<SceneObject> objects;  // in reading order: by row, then by column
  int background = 0;                // index in kBackgrounds
  uint64_t render_seed = 0;          // tint, gradient, noise and brightness

  bool operator==(const Scene&) const = default;
};

struct SceneOptions {
  enum class Positions {
    kSnapped,  // centres within 4 pixels of the centre of a cell 1 .. 4
    kFree,     // anywhere inside the picture
  };
  enum class HeldOut {
    kTrain,  // never a held-out pair
    kPairs,  // at least one held-out pair
    kAny,
  };

  int num_categories = kSmallCategorySet;  // or kLargeCategorySet
  int min_objects = 1;
  int max_objects = 3;  // at most kMaxObjects
  // How often 1, 2, 3 and 4 objects; those outside min_objects .. max_objects do not count.
  std::array<double, kMaxObjects> object_weights = {0.25, 0.40, 0.35, 0.30};
  double repeats = 0.5;  // share of scenes in which categories may repeat, 0 .. 1
  Positions positions = Positions::kSnapped;
  HeldOut held_out = HeldOut::kTrain;

  // Throws std::invalid_argument naming the wrong option.
  void Check() const;
};

// Scene number `index` of the endless stream `seed`. Throws std::invalid_argument as Check().
Scene SampleScene(const SceneOptions& options, uint64_t seed, uint64_t index);

// What stands in a cell, for region-text supervision and maps of words.
struct SceneCell {
  enum class Kind { kBackground, kCentre, kPart };
  Kind kind = Kind::kBackground;
  int index = 0;     // of the category; of the background for kBackground
  bool big = false;  // only for kCentre

  bool operator==(const SceneCell&) const = default;
};

// Labels of the kSceneGrid x kSceneGrid cells, row by row: the centre cell of each object; "part"
// where an object's square covers more than 30 % of a cell (the one that covers most wins).
std::vector<SceneCell> LabelCells(const Scene& scene);

struct PixelBox {
  int x = 0, y = 0, width = 0, height = 0;

  bool operator==(const PixelBox&) const = default;
};

// Exactly where the sprite of an object is drawn.
PixelBox BoxOf(const SceneObject& object);

// ---- Words for positions. All are only given where nobody could disagree.

// "left", "right" or "" for the middle; nothing within 3 pixels of a border between them.
std::optional<std::string_view> HorizontalPlace(const SceneObject& object);
// "top", "bottom" or "" for the middle; nothing within 3 pixels of a border between them.
std::optional<std::string_view> VerticalPlace(const SceneObject& object);

enum class Axis { kHorizontal, kVertical };
// -1 if `a` is clearly before (left of, above) `b`, 1 if clearly after, 0 if neither: other cells
// and centres at least 8 pixels apart.
int Order(const SceneObject& a, const SceneObject& b, Axis axis);

enum class Side { kLeft, kRight, kTop, kBottom };
// The object that is clearly outermost on this side; nullptr if none is, or there is only one
// object.
const SceneObject* Outermost(const Scene& scene, Side side);

}  // namespace llava
