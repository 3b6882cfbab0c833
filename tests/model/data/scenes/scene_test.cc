#include "model/data/scenes/scene.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

#include "model/data/scenes/captions.h"
#include "model/digest/sha256.h"

namespace llava {
namespace {

using Positions = SceneOptions::Positions;
using HeldOut = SceneOptions::HeldOut;

SceneOptions Hard() {
  SceneOptions options;
  options.num_categories = kLargeCategorySet;
  options.max_objects = 4;
  options.positions = Positions::kFree;
  return options;
}

std::string Text(const Scene& scene) {
  std::ostringstream text;
  for (const SceneObject& o : scene.objects) {
    text << o.category << ' ' << o.size << ' ' << o.big << ' ' << o.x << ' ' << o.y << ' '
         << o.column << ' ' << o.row << ' ' << o.mirrored << '\n';
  }
  text << scene.background << ' ' << scene.render_seed << "\n\n";
  return text.str();
}

std::string Digest(const SceneOptions& options) {
  Sha256 hash;
  for (uint64_t i = 0; i < 500; ++i) hash.Update(Text(SampleScene(options, 2024, i)));
  return ToHex(hash.Finish()).substr(0, 16);
}

bool HasHeldOutPair(const Scene& scene) {
  for (const SceneObject& a : scene.objects) {
    for (const SceneObject& b : scene.objects) {
      if (IsHeldOutPair(a.category, b.category)) return true;
    }
  }
  return false;
}

// Data sets and trained checkpoints depend on these: change them only together with a new format.
TEST(SceneTest, IsTheSameForEver) {
  EXPECT_EQ(Digest({}), "33b9c582ddddeca7");
  EXPECT_EQ(Digest(Hard()), "3935eed0b083034d");
}

TEST(SceneTest, AnyNumberCanBeMadeAlone) {
  std::vector<Scene> forward;
  for (uint64_t i = 0; i < 20; ++i) forward.push_back(SampleScene(Hard(), 3, i));
  for (uint64_t i = 20; i-- > 0;) EXPECT_EQ(SampleScene(Hard(), 3, i), forward[i]);
  EXPECT_NE(SampleScene(Hard(), 4, 0), forward[0]);
  EXPECT_NE(forward[0], forward[1]);
}

TEST(SceneTest, HeldOutPairsAreHeldOut) {
  for (SceneOptions options : {SceneOptions(), Hard()}) {
    int any = 0;
    for (uint64_t i = 0; i < 20000; ++i) {
      options.held_out = HeldOut::kTrain;
      ASSERT_FALSE(HasHeldOutPair(SampleScene(options, 5, i)));
      options.held_out = HeldOut::kPairs;
      ASSERT_TRUE(HasHeldOutPair(SampleScene(options, 5, i)));
      options.held_out = HeldOut::kAny;
      any += HasHeldOutPair(SampleScene(options, 5, i));
    }
    EXPECT_GE(any, 1000);
    EXPECT_LE(any, 5000);
  }
}

TEST(SceneTest, NumbersOfObjectsFollowTheWeights) {
  std::array<int, 5> counts{};
  for (uint64_t i = 0; i < 20000; ++i) ++counts.at(SampleScene({}, 6, i).objects.size());
  EXPECT_NEAR(counts[1], 5000, 300);
  EXPECT_NEAR(counts[2], 8000, 300);
  EXPECT_NEAR(counts[3], 7000, 300);
  SceneOptions options = Hard();
  options.min_objects = 4;
  for (uint64_t i = 0; i < 200; ++i) EXPECT_EQ(SampleScene(options, 6, i).objects.size(), 4u);
}

TEST(SceneTest, ObjectsStandInThePictureApartAndInReadingOrder) {
  for (const SceneOptions& options : {SceneOptions(), Hard()}) {
    for (uint64_t n = 0; n < 5000; ++n) {
      const Scene scene = SampleScene(options, 7, n);
      for (size_t i = 0; i < scene.objects.size(); ++i) {
        const SceneObject& o = scene.objects[i];
        EXPECT_LT(o.category, options.num_categories);
        EXPECT_TRUE(o.big ? o.size >= 42 && o.size <= 52 : o.size >= 28 && o.size <= 34);
        EXPECT_GE(2 * std::min(o.x, o.y), o.size);
        EXPECT_LE(2 * std::max(o.x, o.y), 2 * kSceneSide - o.size);
        EXPECT_EQ(o.column, o.x / kScenePatch);
        EXPECT_EQ(o.row, o.y / kScenePatch);
        const PixelBox box = BoxOf(o);
        EXPECT_EQ(std::max(box.width, box.height), o.size);
        EXPECT_GE(std::min(box.x, box.y), 0);
        EXPECT_LE(std::max(box.x + box.width, box.y + box.height), kSceneSide);
        EXPECT_LE(std::abs(2 * box.x + box.width - 2 * o.x), 1);
        EXPECT_LE(std::abs(2 * box.y + box.height - 2 * o.y), 1);
        for (size_t j = 0; j < i; ++j) {
          const SceneObject& p = scene.objects[j];
          EXPECT_LT(p.row * kSceneGrid + p.column, o.row * kSceneGrid + o.column);
          EXPECT_GE(std::max(std::abs(o.x - p.x), std::abs(o.y - p.y)), .46 * (o.size + p.size));
        }
      }
    }
  }
}

TEST(SceneTest, SnappedCentresAreNearCentresOfInnerCells) {
  for (uint64_t n = 0; n < 5000; ++n) {
    for (const SceneObject& o : SampleScene({}, 8, n).objects) {
      for (const auto& [centre, cell] : {std::pair(o.x, o.column), std::pair(o.y, o.row)}) {
        ASSERT_GE(cell, 1);
        ASSERT_LE(cell, 4);
        EXPECT_LE(std::abs(centre - cell * kScenePatch - 8), 4);
      }
      EXPECT_TRUE(PlacePhrase(o).has_value());
    }
  }
}

TEST(SceneTest, CellsShowCentresPartsAndBackground) {
  Scene scene;
  scene.background = 4;
  scene.objects = {
      {.category = 7, .size = 48, .big = true, .x = 40, .y = 40, .column = 2, .row = 2},
      {.category = 9, .size = 28, .x = 78, .y = 80, .column = 4, .row = 5}};
  const auto cells = LabelCells(scene);
  ASSERT_EQ(cells.size(), 36u);
  using Kind = SceneCell::Kind;
  for (int row = 0; row < 6; ++row) {
    for (int column = 0; column < 6; ++column) {
      SceneCell expected{Kind::kBackground, 4, false};
      // The square of 16 .. 64 covers cells 1 .. 3 wholly; that of 64 .. 92 x 66 .. 94 covers cell
      // 4, 4 by 16 x 14, 5, 4 by 12 x 14, 4, 5 by 16 x 14 and 5, 5 by 12 x 14 pixels.
      if (row >= 1 && row <= 3 && column >= 1 && column <= 3) expected = {Kind::kPart, 7, false};
      if (row >= 4 && column >= 4) expected = {Kind::kPart, 9, false};
      if (row == 2 && column == 2) expected = {Kind::kCentre, 7, true};
      if (row == 5 && column == 4) expected = {Kind::kCentre, 9, false};
      EXPECT_EQ(cells[row * 6 + column], expected) << row << " " << column;
    }
  }
  // 28 pixels around 40: 26 .. 54, so 6 x 16 of 16 x 16 pixels of the cells beside: 37 %; 4 x 16 of
  // a square moved by 2 pixels: 25 %.
  scene.objects = {{.category = 3, .size = 28, .x = 40, .y = 40, .column = 2, .row = 2}};
  EXPECT_EQ(LabelCells(scene)[2 * 6 + 1].kind, Kind::kPart);
  EXPECT_EQ(LabelCells(scene)[1 * 6 + 1].kind, Kind::kBackground);
  scene.objects[0].x = 42;
  EXPECT_EQ(LabelCells(scene)[2 * 6 + 1].kind, Kind::kBackground);
}

TEST(SceneTest, PlacesNearABorderHaveNoName) {
  SceneObject object{.x = 28, .y = 50};
  EXPECT_EQ(PlacePhrase(object), "on the left");
  object = {.x = 70, .y = 20};
  EXPECT_EQ(PlacePhrase(object), "at the top right");
  object = {.x = 50, .y = 70};
  EXPECT_EQ(PlacePhrase(object), "at the bottom");
  object = {.x = 40, .y = 60};
  EXPECT_EQ(PlacePhrase(object), "in the center");
  for (const int centre : {30, 31, 32, 33, 34, 62, 63, 64, 65, 66}) {
    object = {.x = centre, .y = 50};
    EXPECT_EQ(PlacePhrase(object), std::nullopt) << centre;
    object = {.x = 50, .y = centre};
    EXPECT_EQ(PlacePhrase(object), std::nullopt) << centre;
  }
}

TEST(SceneTest, OutermostNeedsToBeClear) {
  Scene scene;
  scene.objects = {{.x = 30, .y = 40, .column = 1, .row = 2},
                   {.x = 40, .y = 45, .column = 2, .row = 2}};
  EXPECT_EQ(Outermost(scene, Side::kLeft), &scene.objects[0]);
  EXPECT_EQ(Outermost(scene, Side::kRight), &scene.objects[1]);
  EXPECT_EQ(Outermost(scene, Side::kTop), nullptr);  // the same row
  scene.objects[1].x = 34;
  EXPECT_EQ(Outermost(scene, Side::kLeft), nullptr);  // 4 pixels
  scene.objects.pop_back();
  EXPECT_EQ(Outermost(scene, Side::kLeft), nullptr);  // alone
}

TEST(SceneTest, RepeatsAreAsFrequentAsAskedFor) {
  const auto share = [](double repeats) {
    SceneOptions options;
    options.min_objects = options.max_objects = 2;
    options.repeats = repeats;
    int repeated = 0;
    for (uint64_t i = 0; i < 2000; ++i) {
      const auto objects = SampleScene(options, 5, i).objects;
      repeated += objects[0].category == objects[1].category;
    }
    return repeated / 2000.0;
  };
  EXPECT_EQ(share(0), 0);
  EXPECT_NEAR(share(0.5), 0.25, 0.04);  // one kind or two are equally likely where they may repeat
  EXPECT_NEAR(share(1), 0.5, 0.05);
}

TEST(SceneTest, RefusesImpossibleOptions) {
  const auto refused = [](auto change) {
    SceneOptions options;
    change(options);
    EXPECT_THROW(SampleScene(options, 1, 1), std::invalid_argument);
  };
  refused([](SceneOptions& o) { o.num_categories = 50; });
  refused([](SceneOptions& o) { o.min_objects = 0; });
  refused([](SceneOptions& o) { o.max_objects = 5; });
  refused([](SceneOptions& o) { o.min_objects = 3, o.max_objects = 2; });
  refused([](SceneOptions& o) { o.max_objects = 1, o.held_out = HeldOut::kPairs; });
  refused([](SceneOptions& o) { o.object_weights = {0, 0, 0, 1}; });
  refused([](SceneOptions& o) { o.object_weights = {1, -1, 1, 1}; });
  refused([](SceneOptions& o) { o.repeats = -0.1; });
  refused([](SceneOptions& o) { o.repeats = NAN; });
}

}  // namespace
}  // namespace llava
