#include "model/train/picture_sizes.h"
#include "tests/support/fixtures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <stdexcept>
#include <string>

#include "tests/support/temp_folder.h"

namespace llava {
namespace {

const std::filesystem::path kPictures = FixturesDir() / "images";

TEST(PictureSizesTest, AreThoseOfTheFile) {
  for (const bool decode : {false, true}) {
    PictureSizes sizes(decode);
    EXPECT_EQ(sizes(kPictures / "tall_37x200.png"), (Resolution{37, 200}));
    EXPECT_EQ(sizes(kPictures / "wide_300x41.jpg"), (Resolution{300, 41}));
    EXPECT_EQ(sizes(kPictures / "tall_37x200.png"), (Resolution{37, 200}));
  }
}

// A camera's preview stands before it.
TEST(PictureSizesTest, TheHeaderMayStandFarBack) {
  const TempFolder scratch;
  std::string file = ReadBytes(kPictures / "wide_300x41.jpg");
  std::string segment("\xFF\xE1\xFF\xFF", 4);
  segment.append(0xFFFD, 'x');
  file.insert(2, segment + segment);
  PictureSizes sizes(/*decode=*/false);
  EXPECT_EQ(sizes(scratch.Write("camera.jpg", file)), (Resolution{300, 41}));
}

TEST(PictureSizesTest, SaysWhatIsWrong) {
  const TempFolder scratch;
  const std::string whole = ReadBytes(kPictures / "plain.png");
  const auto text = scratch.Write("text.png", "no picture");
  const auto cut = scratch.Write("cut.png", whole.substr(0, whole.size() / 2));
  for (const bool decode : {false, true}) {
    PictureSizes sizes(decode);
    for (int i = 0; i < 2; ++i) {
      EXPECT_THROW(sizes(text), std::invalid_argument);
      EXPECT_THROW(sizes(scratch.path() / "none.png"), std::runtime_error) << "not its content";
    }
  }
  PictureSizes decoded(/*decode=*/true);
  EXPECT_THROW(decoded(cut), std::invalid_argument);
  EXPECT_EQ(PictureSizes(/*decode=*/false)(cut), (Resolution{120, 90}));
}

}  // namespace
}  // namespace llava
