#include "model/data/scenes/scene.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <tuple>

#include "model/data/scenes/random.h"

namespace llava {
namespace {

constexpr uint64_t kScenePurpose = 1;  // of the random stream
constexpr double kOneGroup = 0.2;      // scenes of several categories that share a group
constexpr int kTries = 20;             // places tried before a scene is begun again
constexpr std::array<double, kMaxObjects> kBig = {0.5, 0.5, 0.3, 0.15};  // share of big ones
constexpr int kClearPixels = 3;       // from a border between places
constexpr int kClearOrderPixels = 8;  // between two centres

// `count` different elements of `from`, in random order.
std::vector<int> Choose(std::vector<int> from, int count, Random& random) {
  for (int i = 0; i < count; ++i) {
    const size_t other = i + random.Below(static_cast<uint32_t>(from.size()) - i);
    std::swap(from[i], from[other]);
  }
  from.resize(count);
  return from;
}

bool HasHeldOutPair(const std::vector<int>& categories) {
  for (size_t i = 0; i < categories.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (IsHeldOutPair(categories[i], categories[j])) return true;
    }
  }
  return false;
}

// The categories of a scene of `count` objects, repeated ones included.
std::vector<int> SampleCategories(const SceneOptions& options, int count, Random& random) {
  const bool pairs = options.held_out == SceneOptions::HeldOut::kPairs;
  while (true) {
    int different = random.Chance(1 - options.repeats) ? count : random.Between(1, count);
    if (pairs) different = std::max(different, 2);
    std::vector<int> all;
    for (int c = 0; c < options.num_categories; ++c) all.push_back(c);
    std::vector<int> chosen = Choose(all, different, random);
    if (different > 1 && random.Chance(kOneGroup)) {
      const std::string& group = Categories()[chosen[0]].group;
      std::erase_if(all, [&](int c) { return Categories()[c].group != group; });
      chosen = Choose(all, different, random);
    }
    if (options.held_out != SceneOptions::HeldOut::kAny && HasHeldOutPair(chosen) != pairs)
      continue;
    for (int i = different; i < count; ++i) chosen.push_back(chosen[random.Below(different)]);
    random.Shuffle(chosen);
    return chosen;
  }
}

SceneObject SampleObject(const SceneOptions& options, int category, int count, Random& random) {
  const bool snapped = options.positions == SceneOptions::Positions::kSnapped;
  SceneObject object;
  object.category = category;
  object.big = random.Chance(kBig[count - 1]);
  object.size = object.big ? random.Between(42, 52) : random.Between(28, 34);
  if (snapped) object.size &= ~1;  // even, so that the centre is a pixel
  const int low = (object.size + 1) / 2, high = kSceneSide - low;
  const auto coordinate = [&] {
    if (!snapped) return random.Between(low, high);
    const int cell = random.Between(1, kSceneGrid - 2);
    const int centre = cell * kScenePatch + kScenePatch / 2;
    return std::clamp(centre + random.Between(-4, 4), low, high);
  };
  object.x = coordinate();
  object.y = coordinate();
  object.column = object.x / kScenePatch;
  object.row = object.y / kScenePatch;
  object.mirrored = random.Chance(0.5);
  return object;
}

// Next to no overlap: apart by 46 % of both sizes, one way or the other.
bool Apart(const SceneObject& a, const SceneObject& b) {
  const int distance = std::max(std::abs(a.x - b.x), std::abs(a.y - b.y));
  return distance * 50 >= (a.size + b.size) * 23;
}

// Objects at places of their own; nothing if no room was found.
std::optional<std::vector<SceneObject>> Place(const SceneOptions& options,
                                              const std::vector<int>& categories, Random& random) {
  std::vector<SceneObject> placed;
  for (const int category : categories) {
    int tries = 0;
    while (true) {
      const SceneObject object =
          SampleObject(options, category, static_cast<int>(categories.size()), random);
      if (std::all_of(placed.begin(), placed.end(),
                      [&](const SceneObject& other) { return Apart(object, other); })) {
        placed.push_back(object);
        break;
      }
      if (++tries == kTries) return std::nullopt;
    }
  }
  std::sort(placed.begin(), placed.end(), [](const SceneObject& a, const SceneObject& b) {
    return std::tie(a.row, a.column) < std::tie(b.row, b.column);  // no two share a cell
  });
  return placed;
}

// Of [0, kSceneSide): the first third is "low", the last is "high".
std::optional<std::string_view> PlaceWord(int centre, std::string_view low, std::string_view high) {
  constexpr int kFirst = kSceneSide / 3, kSecond = 2 * kSceneSide / 3;
  if (std::abs(centre - kFirst) < kClearPixels || std::abs(centre - kSecond) < kClearPixels) {
    return std::nullopt;
  }
  return centre < kFirst ? low : centre > kSecond ? high : std::string_view();
}

}  // namespace

void SceneOptions::Check() const {
  const auto fail = [](const std::string& what) {
    throw std::invalid_argument("scene options: " + what);
  };
  if (num_categories != kSmallCategorySet && num_categories != kLargeCategorySet) {
    fail(std::to_string(num_categories) + " categories, there are sets of 48 and of 96");
  }
  if (min_objects < 1 || max_objects < min_objects || max_objects > kMaxObjects) {
    fail(std::to_string(min_objects) + "-" + std::to_string(max_objects) +
         " objects, expected a range within 1-" + std::to_string(kMaxObjects));
  }
  if (held_out == HeldOut::kPairs && max_objects < 2) {
    fail("held-out pairs need scenes of at least 2 objects");
  }
  if (!(repeats >= 0 && repeats <= 1)) fail("the share of repeats must be within 0 and 1");
  double total = 0;
  for (int n = min_objects; n <= max_objects; ++n) {
    const double weight = object_weights[n - 1];
    if (!(weight >= 0) || !std::isfinite(weight)) fail("a negative weight of the object counts");
    if (held_out != HeldOut::kPairs || n > 1) total += weight;
  }
  if (!(total > 0)) fail("the weights of the allowed object counts are all zero");
}

Scene SampleScene(const SceneOptions& options, uint64_t seed, uint64_t index) {
  options.Check();
  Random random(seed, index, kScenePurpose);
  std::array<double, kMaxObjects> weights = options.object_weights;
  for (int n = 1; n <= kMaxObjects; ++n) {
    const bool alone = n == 1 && options.held_out == SceneOptions::HeldOut::kPairs;
    if (n < options.min_objects || n > options.max_objects || alone) weights[n - 1] = 0;
  }
  const int count = static_cast<int>(random.Weighted(weights)) + 1;
  while (true) {
    auto objects = Place(options, SampleCategories(options, count, random), random);
    if (!objects) continue;
    Scene scene;
    scene.objects = *std::move(objects);
    scene.background = static_cast<int>(random.Below(kBackgrounds.size()));
    scene.render_seed = random.Bits();
    return scene;
  }
}

std::vector<SceneCell> LabelCells(const Scene& scene) {
  std::vector<SceneCell> cells(kSceneGrid * kSceneGrid,
                               {SceneCell::Kind::kBackground, scene.background, false});
  // Areas in quarters of pixels, so that squares of odd sides stay exact.
  std::vector<int> best(cells.size(), 4 * kScenePatch * kScenePatch * 3 / 10);
  for (const SceneObject& object : scene.objects) {
    const auto covered = [&](int centre, int cell) {
      const int low = std::max(2 * centre - object.size, 2 * cell * kScenePatch);
      const int high = std::min(2 * centre + object.size, 2 * (cell + 1) * kScenePatch);
      return std::max(0, high - low);
    };
    for (int row = 0; row < kSceneGrid; ++row) {
      for (int column = 0; column < kSceneGrid; ++column) {
        const int area = covered(object.x, column) * covered(object.y, row);
        const int at = row * kSceneGrid + column;
        if (area <= best[at]) continue;
        best[at] = area;
        cells[at] = {SceneCell::Kind::kPart, object.category, false};
      }
    }
  }
  for (const SceneObject& object : scene.objects) {
    cells[object.row * kSceneGrid + object.column] = {SceneCell::Kind::kCentre, object.category,
                                                      object.big};
  }
  return cells;
}

PixelBox BoxOf(const SceneObject& object) {
  const auto& sprite = Categories()[object.category].sprite;
  const int longer = std::max(sprite.width, sprite.height);
  const auto scaled = [&](int side) {  // rounded
    return std::max(1, (2 * side * object.size + longer) / (2 * longer));
  };
  PixelBox box{0, 0, scaled(sprite.width), scaled(sprite.height)};
  box.x = std::clamp(object.x - box.width / 2, 0, kSceneSide - box.width);
  box.y = std::clamp(object.y - box.height / 2, 0, kSceneSide - box.height);
  return box;
}

std::optional<std::string_view> HorizontalPlace(const SceneObject& object) {
  return PlaceWord(object.x, "left", "right");
}

std::optional<std::string_view> VerticalPlace(const SceneObject& object) {
  return PlaceWord(object.y, "top", "bottom");
}

int Order(const SceneObject& a, const SceneObject& b, Axis axis) {
  const bool horizontal = axis == Axis::kHorizontal;
  if ((horizontal ? a.column == b.column : a.row == b.row)) return 0;
  const int distance = horizontal ? a.x - b.x : a.y - b.y;
  return std::abs(distance) < kClearOrderPixels ? 0 : distance < 0 ? -1 : 1;
}

const SceneObject* Outermost(const Scene& scene, Side side) {
  if (scene.objects.size() < 2) return nullptr;
  const Axis axis =
      side == Side::kLeft || side == Side::kRight ? Axis::kHorizontal : Axis::kVertical;
  const int wanted = side == Side::kLeft || side == Side::kTop ? -1 : 1;
  for (const SceneObject& candidate : scene.objects) {
    if (std::all_of(scene.objects.begin(), scene.objects.end(), [&](const SceneObject& other) {
          return &other == &candidate || Order(candidate, other, axis) == wanted;
        })) {
      return &candidate;
    }
  }
  return nullptr;
}

}  // namespace llava
