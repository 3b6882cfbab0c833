#include "model/train/frozen_tower.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "model/image/decode.h"
#include "model/image/image.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

class FrozenTowerTest : public testing::Test {
 protected:
  const TowerCheckpoint checkpoint_ = OpenTower(FixturesDir() / "tiny-llava");
  const std::filesystem::path picture_ = FixturesDir() / "images/plain.png";
  const std::filesystem::path other_ = FixturesDir() / "images/rgba.png";
  TempFolder scratch_;
};

TEST_F(FrozenTowerTest, FeaturesAreThoseOfTheTower) {
  const FrozenTower tower(checkpoint_, {.features = {.image_mode = ImageMode::kPad}});
  const at::Tensor features = tower.Features(picture_).rows;
  EXPECT_EQ(features.dim(), 2);
  EXPECT_EQ(features.size(0), checkpoint_.config.num_patches());
  EXPECT_FALSE(features.requires_grad());
  EXPECT_FALSE(at::equal(tower.Features(other_).rows, features));
  const FrozenTower cropping(checkpoint_, {.features = {.image_mode = ImageMode::kCrop}});
  EXPECT_FALSE(at::equal(cropping.Features(picture_).rows, features));
  const FrozenTower last(checkpoint_, {.features = {.select_layer = -1}});
  EXPECT_FALSE(at::equal(last.Features(picture_).rows, features));
}

TEST_F(FrozenTowerTest, CachesGiveTheSameBits) {
  const FrozenTower plain(checkpoint_, {});
  const at::Tensor expected = plain.Features(picture_).rows;
  plain.Features(picture_);
  EXPECT_EQ(plain.counts().computed, 2);

  const auto copy = scratch_.path() / "copy.png";
  std::filesystem::copy_file(picture_, copy);
  const FrozenTower memory(checkpoint_, {.memory_bytes = 1 << 20});
  for (const auto& path : {picture_, picture_, copy}) {
    EXPECT_TRUE(at::equal(memory.Features(path).rows, expected));
  }
  EXPECT_EQ(memory.counts().computed, 1) << "named by content";
  EXPECT_EQ(memory.counts().from_memory, 2);

  FrozenTowerOptions with_file;
  with_file.cache_file = scratch_.path() / "features";
  {
    const FrozenTower first(checkpoint_, with_file);
    first.Features(picture_);
  }
  const FrozenTower second(checkpoint_, with_file);
  EXPECT_TRUE(at::equal(second.Features(picture_).rows, expected));
  EXPECT_EQ(second.counts().computed, 0);
  EXPECT_EQ(second.counts().from_file, 1);
}

TEST_F(FrozenTowerTest, KeepsPicturesInTiles) {
  FrozenTowerOptions options;
  options.features.image_mode = ImageMode::kAnyres;
  options.features.grid = {{56, 56}, {112, 56}, {56, 112}};
  options.features.tile_size = 56;
  const FrozenTower plain(checkpoint_, options);
  const auto tall = FixturesDir() / "images/tall_37x200.png";
  const auto square = FixturesDir() / "images/palette.png";
  const int64_t patches = checkpoint_.config.num_patches();
  const PictureFeatures of_tall = plain.Features(tall), of_square = plain.Features(square);
  EXPECT_EQ(of_tall.size, (Resolution{37, 200}));
  EXPECT_EQ(of_tall.rows.size(0), 3 * patches);
  EXPECT_EQ(of_square.rows.size(0), 2 * patches);
  const FrozenTower padding(checkpoint_, {.features = {.image_mode = ImageMode::kPad}});
  EXPECT_FALSE(at::equal(padding.Features(tall).rows, of_tall.rows.narrow(0, 0, patches)))
      << "the overview is squashed";

  options.cache_file = scratch_.path() / "features";
  for (const int64_t memory : {0, 1 << 20}) {
    options.memory_bytes = memory;
    for (const int64_t computed : {memory == 0 ? 2 : 0, 0}) {
      const FrozenTower tower(checkpoint_, options);
      for (int i = 0; i < 2; ++i) {
        EXPECT_TRUE(at::equal(tower.Features(tall).rows, of_tall.rows));
        EXPECT_TRUE(at::equal(tower.Features(square).rows, of_square.rows));
        EXPECT_EQ(tower.Features(tall).size, of_tall.size);
      }
      EXPECT_EQ(tower.counts().computed, computed);
    }
  }
  options.features.grid.pop_back();  // the same picture would have other tiles
  EXPECT_THROW(FrozenTower(checkpoint_, options), std::runtime_error);
}

TEST_F(FrozenTowerTest, KeepsNoMoreThanItMay) {
  const auto bytes =
      static_cast<int64_t>(FrozenTower(checkpoint_, {}).Features(picture_).rows.nbytes());
  const FrozenTower tower(checkpoint_, {.memory_bytes = bytes + bytes / 2});
  for (int i = 0; i < 3; ++i) {
    tower.Features(picture_);
    tower.Features(other_);
  }
  EXPECT_EQ(tower.counts().from_memory, 2);
  EXPECT_EQ(tower.counts().computed, 4);
}

TEST_F(FrozenTowerTest, DoesNotDependOnTheThreadThatAsks) {
  const FrozenTower tower(checkpoint_, {});
  const int before = at::get_num_threads();
  const at::Tensor expected = tower.Features(picture_).rows;
  EXPECT_EQ(at::get_num_threads(), before);
  at::Tensor elsewhere;
  std::jthread([&] { elsewhere = tower.Features(picture_).rows; }).join();
  EXPECT_TRUE(at::equal(elsewhere, expected));
}

TEST_F(FrozenTowerTest, SaysWhatIsWrongWithAPicture) {
  const FrozenTower tower(checkpoint_, {.memory_bytes = 1 << 20});
  EXPECT_THROW(tower.Features(scratch_.Write("text.png", "no picture")), std::invalid_argument);
  EXPECT_THROW(tower.Features(scratch_.path() / "none.png"), std::runtime_error);
  EXPECT_THROW(tower.Features(scratch_.Write("empty.png", "")), std::invalid_argument);
}

}  // namespace
}  // namespace llava
