#pragma once

// Pictures as a teacher without eyes knows them: by captions and boxes.

#include <filesystem>
#include <string>
#include <vector>

namespace llava {

struct CaptionedImage {
  struct Box {
    std::string category = "";
    double x1 = 0, y1 = 0, x2 = 0, y2 = 0;  // corners, 0 to 1 of width and height
  };
  // The name of the file without its ending, with its folder where an earlier one has the same.
  std::string id = "";
  std::string file = "";                   // relative to the folder of pictures
  std::vector<std::string> captions = {};  // one line each, not empty
  std::vector<Box> boxes = {};
};

// All throw std::invalid_argument naming the file and the line or element that is wrong: broken
// syntax, missing keys, text that is no UTF-8, an annotation of an unknown picture or category.

// COCO's captions_*.json and instances_*.json (empty: no boxes), in the order of the first's
// pictures; those without captions are left out. Boxes of pictures that only the second file knows
// are ignored, and those around a crowd. Segmentations are not kept in memory.
std::vector<CaptionedImage> ReadCoco(const std::filesystem::path& captions,
                                     const std::filesystem::path& instances);

struct ImageCaption {
  std::string image, caption;  // file, one line
};
// The lines of a table (RFC 4180) whose first line names columns, "image" and "caption" among them;
// others are ignored.
std::vector<ImageCaption> ReadCaptionLines(const std::filesystem::path& path);
// The same by image: lines of one image are its captions, in the order of their first lines.
std::vector<CaptionedImage> ReadCaptionTable(const std::filesystem::path& path);

// CC3M's list: lines of caption, tab, URL. Line n, from 0, is the picture GCC_train_<n>.jpg (nine
// digits), as in LLaVA's data.
std::vector<CaptionedImage> ReadCc3mList(const std::filesystem::path& path);

// What the teacher is shown: captions one a line; behind an empty line the boxes, one a line as
// "category: [x1, y1, x2, y2]" with at most three decimals. The paper shows boxes for descriptions
// and reasoning, captions alone for conversations.
std::string SymbolicContext(const CaptionedImage& image, bool with_boxes);

}  // namespace llava
