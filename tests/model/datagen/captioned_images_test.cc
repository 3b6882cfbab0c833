#include "model/datagen/captioned_images.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "model/datagen/delimited_file.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class CaptionedImagesTest : public testing::Test {
 protected:
  fs::path Write(const std::string& name, const std::string& text) const {
    return folder_.Write(name, text);
  }

  const TempFolder folder_;
};

constexpr char kCaptions[] = R"({"info": {"year": 2014}, "licenses": [{"id": 1}],
"images": [
  {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480},
  {"id": 25, "file_name": "000000000025.jpg", "width": 200, "height": 100},
  {"id": 30, "file_name": "000000000030.jpg", "width": 10, "height": 10}],
"annotations": [
  {"id": 1, "image_id": 25, "caption": " A giraffe\n eats. "},
  {"id": 2, "image_id": 9, "caption": "Food on a tray."},
  {"id": 3, "image_id": 25, "caption": "Two giraffes \u00e0 la carte."}]})";

// The sections in another order than in the other file, as some tools write them.
constexpr char kInstances[] = R"({"annotations": [
  {"id": 1, "image_id": 25, "category_id": 2, "bbox": [50, 25, 100, 50], "iscrowd": 0,
   "segmentation": [[1, 2, 3, 4]]},
  {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 640, 480],
   "segmentation": {"counts": [1, 2], "size": [640, 480]}},
  {"id": 3, "image_id": 25, "category_id": 1, "bbox": [66.6, 33.3, 12.345, 6.789]},
  {"id": 4, "image_id": 77, "category_id": 1, "bbox": [0, 0, 1, 1]},
  {"id": 900100000025, "image_id": 25, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1,
   "segmentation": {"counts": [1, 2], "size": [200, 100]}},
  {"id": 5, "image_id": 25, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": true}],
"images": [{"id": 9, "width": 640, "height": 480}, {"id": 25, "width": 200, "height": 100}],
"categories": [{"id": 1, "name": "bowl"}, {"id": 2, "name": "giraffe"}]})";

TEST_F(CaptionedImagesTest, ReadsCoco) {
  const auto images = ReadCoco(Write("c.json", kCaptions), Write("i.json", kInstances));
  ASSERT_EQ(images.size(), 2u);  // the third has no captions
  EXPECT_EQ(images[0].id, "COCO_train2014_000000000009");
  EXPECT_EQ(images[1].id, "000000000025");
  EXPECT_EQ(images[1].file, "000000000025.jpg");
  EXPECT_THAT(images[1].captions,
              ElementsAre("A giraffe eats.", "Two giraffes \xC3\xA0 la carte."));
  ASSERT_EQ(images[1].boxes.size(), 2u);  // those around a crowd are left out
  EXPECT_EQ(images[1].boxes[0].category, "giraffe");
  EXPECT_DOUBLE_EQ(images[1].boxes[0].x1, 0.25);
  EXPECT_DOUBLE_EQ(images[1].boxes[0].y2, 0.75);
}

TEST_F(CaptionedImagesTest, CrowdsAloneAreNoBoxesAndNoError) {
  const auto images = ReadCoco(Write("c.json", kCaptions), Write("i.json", R"({
      "images": [{"id": 9, "width": 640, "height": 480}], "annotations": [
        {"image_id": 9, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}],
      "categories": [{"id": 1, "name": "bowl"}]})"));
  EXPECT_TRUE(images.at(0).boxes.empty());
}

TEST_F(CaptionedImagesTest, ContextIsAsInThePaper) {
  const auto images = ReadCoco(Write("c.json", kCaptions), Write("i.json", kInstances));
  EXPECT_EQ(SymbolicContext(images[1], false), "A giraffe eats.\nTwo giraffes \xC3\xA0 la carte.");
  EXPECT_EQ(SymbolicContext(images[1], true),
            "A giraffe eats.\nTwo giraffes \xC3\xA0 la carte.\n\n"
            "giraffe: [0.25, 0.25, 0.75, 0.75]\n"
            "bowl: [0.333, 0.333, 0.395, 0.401]");
  // Python's spelling of whole numbers.
  EXPECT_THAT(SymbolicContext(images[0], true), HasSubstr("\n\nbowl: [0.0, 0.0, 1.0, 1.0]"));
  EXPECT_EQ(SymbolicContext({.captions = {"One."}}, true), "One.");  // no box, no empty line
}

TEST_F(CaptionedImagesTest, CocoErrorsNameFileAndPlace) {
  const fs::path good = Write("c.json", kCaptions);
  const auto captions_error = [&](const std::string& text) {
    const fs::path path = Write("bad.json", text);
    const std::string error = ErrorOf<std::invalid_argument>([&] { ReadCoco(path, ""); });
    EXPECT_THAT(error, HasSubstr(path.string())) << text;
    return error;
  };
  EXPECT_THAT(captions_error("{\"images\": [\n{\"id\": 1,,}]}"), HasSubstr("line 2"));
  EXPECT_THAT(captions_error(R"({"images": [{"id": 1, "width": 1e999}]})"), HasSubstr("1e999"));
  EXPECT_THAT(captions_error("{\"images\": [{\"id\": " + std::string(100'000, '[')),
              HasSubstr("more than 200 levels"));
  EXPECT_NE(captions_error("[1, 2]"), "");
  EXPECT_NE(captions_error(""), "");
  EXPECT_THAT(captions_error(R"({"images": [{"id": 1, "file_name": "a"}, {"id": 2}]})"),
              HasSubstr("images[1]: no text as \"file_name\""));
  EXPECT_THAT(captions_error(R"({"images": [{"id": 1, "file_name": "a"}, {"id": 1,
                                 "file_name": "b"}]})"),
              HasSubstr("images[1]: image 1 comes twice"));
  EXPECT_THAT(captions_error(R"({"images": [], "annotations": [{"image_id": 5,
                                 "caption": "x"}]})"),
              HasSubstr("annotations[0]: no image 5"));
  EXPECT_THAT(captions_error(R"({"annotations": [{"image_id": 5, "caption": "  "}]})"),
              HasSubstr("annotations[0]: the caption is empty"));
  const auto instances_error = [&](const std::string& text) {
    const fs::path path = Write("bad.json", text);
    return ErrorOf<std::invalid_argument>([&] { ReadCoco(good, path); });
  };
  EXPECT_THAT(instances_error(R"({"annotations": [{"image_id": 9, "category_id": 1,
                                  "bbox": [1, 2, 3]}]})"),
              HasSubstr("annotations[0]: no four numbers as \"bbox\""));
  EXPECT_THAT(instances_error(R"({"images": [{"id": 9, "width": 0, "height": 4}]})"),
              HasSubstr("images[0]: no positive number as \"width\""));
  EXPECT_THAT(instances_error(R"({"images": [{"id": 9, "width": 4, "height": 4}],
                                  "annotations": [{"image_id": 9, "category_id": 1,
                                  "bbox": [1, 2, 1, 1]}]})"),
              HasSubstr("annotations[0]: no category 1"));
  EXPECT_THAT(instances_error(R"({"annotations": [{"image_id": 77, "category_id": 1,
                                  "bbox": [1, 2, 1, 1]}]})"),
              HasSubstr("none of its boxes"));
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { ReadCoco(folder_.path() / "none.json", ""); }),
              HasSubstr("none.json"));
}

TEST_F(CaptionedImagesTest, ReadsTables) {
  const fs::path path = Write("t.csv",
                              "\xEF\xBB\xBFid,caption,image\r\n"
                              "1,A dog.,b/one.jpg\r\n"
                              "\r\n"
                              "2,\"A \"\"big\"\" cat,\nasleep.\",two.png\r\n"
                              "3,The same dog.,b/one.jpg\r\n");
  const auto images = ReadCaptionTable(path);
  ASSERT_EQ(images.size(), 2u);
  EXPECT_EQ(images[0].id, "one");
  EXPECT_EQ(images[0].file, "b/one.jpg");
  EXPECT_THAT(images[0].captions, ElementsAre("A dog.", "The same dog."));
  EXPECT_THAT(images[1].captions, ElementsAre("A \"big\" cat, asleep."));
}

TEST_F(CaptionedImagesTest, PicturesOfSeveralFoldersHaveIdsOfTheirOwn) {
  const auto ids = [](const std::vector<CaptionedImage>& images) {
    std::vector<std::string> ids;
    for (const CaptionedImage& image : images) ids.push_back(image.id);
    return ids;
  };
  const auto expected = ElementsAre("1", "b/1", "b/1.png");
  EXPECT_THAT(
      ids(ReadCaptionTable(Write("t.csv", "image,caption\na/1.jpg,A.\nb/1.jpg,B.\nb/1.png,C.\n"))),
      expected);
  EXPECT_THAT(ids(ReadCoco(Write("c.json", R"({"images": [
      {"id": 1, "file_name": "a/1.jpg"}, {"id": 2, "file_name": "b/1.jpg"},
      {"id": 3, "file_name": "b/1.png"}], "annotations": [
      {"image_id": 1, "caption": "A."}, {"image_id": 2, "caption": "B."},
      {"image_id": 3, "caption": "C."}]})"),
                           "")),
              expected);
}

TEST_F(CaptionedImagesTest, TableErrorsNameFileAndLine) {
  const auto error = [&](const std::string& text) {
    const fs::path path = Write("t.csv", text);
    const std::string message = ErrorOf<std::invalid_argument>([&] { ReadCaptionTable(path); });
    EXPECT_TRUE(message.starts_with(path.string() + ":")) << message;
    return message.substr(std::min(message.size(), path.string().size()));
  };
  EXPECT_THAT(error(""), HasSubstr(":1: "));
  EXPECT_THAT(error("image,text\n"), HasSubstr(":1: no column \"caption\""));
  EXPECT_THAT(error("image,caption\na,b\nc\n"), HasSubstr(":3: has 1 fields, expected 2"));
  EXPECT_THAT(error("image,caption\na,b\n\n,d\n"), HasSubstr(":4: the image has no name"));
  EXPECT_THAT(error("image,caption\na, \n"), HasSubstr(":2: the caption is empty"));
  EXPECT_THAT(error("image,caption\na,caf\xE9\n"), HasSubstr(":2: the caption is no UTF-8"));
  EXPECT_THAT(error("image,caption\na,\"b\nc\n"), HasSubstr(":2: a field in quotes does not end"));
  EXPECT_THAT(error("image,caption\na,\"b\"c\n"), HasSubstr(":2: text behind the quotes"));
  EXPECT_THAT(error("image,caption\na,b\"c\"\n"), HasSubstr(":2: a quote within a field"));
}

TEST_F(CaptionedImagesTest, ReadsCc3m) {
  const auto images = ReadCc3mList(Write("cc.tsv",
                                         "a very typical bus station\thttp://x/1.jpg\n"
                                         "sierra looked stunning in this top\thttp://x/2.jpg\n"));
  ASSERT_EQ(images.size(), 2u);
  EXPECT_EQ(images[1].file, "GCC_train_000000001.jpg");
  EXPECT_THAT(images[1].captions, ElementsAre("sierra looked stunning in this top"));
  const fs::path bad = Write("cc.tsv", "a\tb\nno tab\n");
  EXPECT_THAT(ErrorOf<std::invalid_argument>([&] { ReadCc3mList(bad); }),
              HasSubstr("cc.tsv:2: has 1 fields, expected caption and URL"));
}

TEST(CsvFieldTest, CanBeReadBack) {
  const std::vector<std::string> fields = {"plain", "with, comma", "a \"quote\"", "two\nlines", ""};
  std::string line;
  for (size_t i = 0; i < fields.size(); ++i) line += (i ? "," : "") + CsvField(fields[i]);
  const TempFolder folder;
  DelimitedFile file(folder.Write("fields.csv", line + "\n"), DelimitedFile::Format::kCsv);
  std::vector<std::string> read;
  ASSERT_TRUE(file.Next(read));
  EXPECT_EQ(read, fields);
  EXPECT_FALSE(file.Next(read));
}

}  // namespace
}  // namespace llava
