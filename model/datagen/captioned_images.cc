#include "model/datagen/captioned_images.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "model/datagen/delimited_file.h"
#include "model/text/json_text.h"
#include "model/text/utf8.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// The file's name without its ending; where an earlier file has that, with the folder, at last as
// it is. Adds it to `taken`.
std::string IdFor(const std::string& file, std::unordered_set<std::string>& taken) {
  const fs::path path = file;
  for (const fs::path& id : {path.stem(), path.parent_path() / path.stem()}) {
    if (taken.insert(id.string()).second) return id.string();
  }
  taken.insert(file);
  return file;
}

// The caption on one line, single spaces within. Throws if nothing is left or it is no UTF-8.
std::string TidyCaption(const std::string& caption) {
  std::string tidy;
  for (std::string_view rest = caption; !rest.empty();) {
    const Utf8Char next = ReadUtf8(rest);
    if (next.state != Utf8Char::State::kWhole) {
      throw std::invalid_argument("the caption is no UTF-8");
    }
    if (next.value <= ' ' || next.value == 0x7F || next.value == 0xA0) {
      if (!tidy.empty() && tidy.back() != ' ') tidy += ' ';
    } else {
      tidy += rest.substr(0, next.size);
    }
    rest.remove_prefix(next.size);
  }
  while (tidy.ends_with(' ')) tidy.pop_back();
  if (tidy.empty()) throw std::invalid_argument("the caption is empty");
  return tidy;
}

// Calls `take` with each object of the arrays at a COCO file's top ("images", "annotations", ...)
// without ever holding more than one of them.
void ReadCocoObjects(
    const fs::path& path,
    const std::function<void(const std::string& section, const Json& object)>& take) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::invalid_argument(path.string() + ": cannot be read: " + std::strerror(errno));
  }
  std::string section;
  std::unordered_map<std::string, uint64_t> counts;
  const auto step = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kDeepestJson) {
      throw std::invalid_argument(path.string() + ": has more than " +
                                  std::to_string(kDeepestJson) + " levels of arrays and objects");
    }
    if (event == Json::parse_event_t::key) {
      if (depth == 1) section = parsed.get<std::string>();
      return parsed != "segmentation";
    }
    if (event != Json::parse_event_t::object_end || depth != 2) return true;
    const uint64_t number = counts[section]++;
    try {
      take(section, parsed);
    } catch (const std::exception& error) {
      throw std::invalid_argument(path.string() + ": " + section + "[" + std::to_string(number) +
                                  "]: " + error.what());
    }
    return false;
  };
  try {
    const Json rest = Json::parse(file, step);
    if (!rest.is_object()) throw std::invalid_argument(path.string() + ": is no JSON object");
  } catch (
      const Json::exception& error) {  // tells line and column, or the number that is too large
    throw std::invalid_argument(path.string() + ": " + error.what());
  }
}

int64_t IntegerAt(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer()) {
    throw std::invalid_argument(std::string("no whole number as \"") + key + "\"");
  }
  return found->get<int64_t>();
}

std::string TextAt(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    throw std::invalid_argument(std::string("no text as \"") + key + "\"");
  }
  return found->get<std::string>();
}

double PositiveAt(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number() || found->get<double>() <= 0) {
    throw std::invalid_argument(std::string("no positive number as \"") + key + "\"");
  }
  return found->get<double>();
}

CaptionedImage::Box BoxFrom(const Json& annotation, const std::string& category, double width,
                            double height) {
  const auto found = annotation.find("bbox");
  if (found == annotation.end() || !found->is_array() || found->size() != 4 ||
      !std::all_of(found->begin(), found->end(), [](const Json& v) { return v.is_number(); })) {
    throw std::invalid_argument("no four numbers as \"bbox\"");
  }
  const double x = (*found)[0], y = (*found)[1], w = (*found)[2], h = (*found)[3];
  if (w < 0 || h < 0) throw std::invalid_argument("a box of negative size");
  const auto share = [](double value, double whole) { return std::clamp(value / whole, 0.0, 1.0); };
  return {.category = category,
          .x1 = share(x, width),
          .y1 = share(y, height),
          .x2 = share(x + w, width),
          .y2 = share(y + h, height)};
}

// Whether the box is around many things of a kind at once: shown as one it would be a wrong thing.
bool IsCrowd(const Json& annotation) {
  const auto found = annotation.find("iscrowd");
  if (found == annotation.end()) return false;
  return found->is_boolean() ? found->get<bool>() : found->is_number() && found->get<double>() != 0;
}

void AddBoxes(const fs::path& path, const std::unordered_map<int64_t, size_t>& places,
              std::vector<CaptionedImage>& images) {
  std::unordered_map<int64_t, std::pair<double, double>> sizes;
  std::unordered_map<int64_t, std::string> categories;
  // The sections of the file may come in any order: boxes wait until all is known.
  struct Waiting {
    uint64_t number;  // of the annotation
    int64_t image, category;
    Json annotation;
  };
  std::vector<Waiting> boxes;
  uint64_t annotations = 0;
  bool any = false;  // of a picture with captions
  ReadCocoObjects(path, [&](const std::string& section, const Json& object) {
    if (section == "images") {
      sizes[IntegerAt(object, "id")] = {PositiveAt(object, "width"), PositiveAt(object, "height")};
    } else if (section == "categories") {
      categories[IntegerAt(object, "id")] = TextAt(object, "name");
    } else if (section == "annotations") {
      const uint64_t number = annotations++;
      const int64_t image = IntegerAt(object, "image_id");
      const int64_t category = IntegerAt(object, "category_id");
      BoxFrom(object, "", 1, 1);  // throws with its place
      if (!places.contains(image)) return;
      any = true;
      if (!IsCrowd(object)) boxes.push_back({number, image, category, object.at("bbox")});
    }
  });
  for (const Waiting& box : boxes) {
    const auto size = sizes.find(box.image);
    const auto category = categories.find(box.category);
    const std::string where = path.string() + ": annotations[" + std::to_string(box.number) + "]: ";
    if (size == sizes.end()) {
      throw std::invalid_argument(where + "no image " + std::to_string(box.image) +
                                  " in \"images\"");
    }
    if (category == categories.end()) {
      throw std::invalid_argument(where + "no category " + std::to_string(box.category));
    }
    images[places.at(box.image)].boxes.push_back(BoxFrom(
        {{"bbox", box.annotation}}, category->second, size->second.first, size->second.second));
  }
  if (annotations > 0 && !any) {
    throw std::invalid_argument(path.string() +
                                ": none of its boxes is of a picture with captions");
  }
}

// Python's spelling of a number rounded to three decimals: 0.5, 0.125, 1.0.
std::string ShortDecimal(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3f", value);
  std::string number = text;
  while (number.ends_with('0') && number[number.size() - 2] != '.') number.pop_back();
  return number;
}

}  // namespace

std::vector<CaptionedImage> ReadCoco(const fs::path& captions, const fs::path& instances) {
  std::vector<CaptionedImage> images;
  std::unordered_set<std::string> ids;
  std::unordered_map<int64_t, size_t> places;            // by COCO's id
  std::vector<std::pair<int64_t, std::string>> waiting;  // captions, until all pictures are known
  ReadCocoObjects(captions, [&](const std::string& section, const Json& object) {
    if (section == "images") {
      CaptionedImage image;
      image.file = TextAt(object, "file_name");
      image.id = IdFor(image.file, ids);
      const int64_t id = IntegerAt(object, "id");
      if (!places.emplace(id, images.size()).second) {
        throw std::invalid_argument("image " + std::to_string(id) + " comes twice");
      }
      images.push_back(std::move(image));
    } else if (section == "annotations") {
      waiting.emplace_back(IntegerAt(object, "image_id"), TidyCaption(TextAt(object, "caption")));
    }
  });
  for (size_t i = 0; i < waiting.size(); ++i) {
    const auto place = places.find(waiting[i].first);
    if (place == places.end()) {
      throw std::invalid_argument(captions.string() + ": annotations[" + std::to_string(i) +
                                  "]: no image " + std::to_string(waiting[i].first) +
                                  " in \"images\"");
    }
    images[place->second].captions.push_back(std::move(waiting[i].second));
  }
  if (!instances.empty()) AddBoxes(instances, places, images);
  std::erase_if(images, [](const CaptionedImage& image) { return image.captions.empty(); });
  return images;
}

std::vector<ImageCaption> ReadCaptionLines(const fs::path& path) {
  DelimitedFile file(path, DelimitedFile::Format::kCsv);
  std::vector<std::string> fields;
  if (!file.Next(fields)) throw std::invalid_argument(path.string() + ":1: has no line of names");
  const size_t columns = fields.size();
  const auto column = [&](const char* name) {
    const auto found = std::find(fields.begin(), fields.end(), name);
    if (found == fields.end()) file.Fail(std::string("no column \"") + name + "\"");
    return static_cast<size_t>(found - fields.begin());
  };
  const size_t image_column = column("image"), caption_column = column("caption");
  std::vector<ImageCaption> lines;
  while (file.Next(fields)) {
    if (fields.size() != columns) {
      file.Fail("has " + std::to_string(fields.size()) + " fields, expected " +
                std::to_string(columns));
    }
    if (fields[image_column].empty()) file.Fail("the image has no name");
    try {
      lines.push_back({fields[image_column], TidyCaption(fields[caption_column])});
    } catch (const std::invalid_argument& error) {
      file.Fail(error.what());
    }
  }
  return lines;
}

std::vector<CaptionedImage> ReadCaptionTable(const fs::path& path) {
  std::vector<CaptionedImage> images;
  std::unordered_set<std::string> ids;
  std::unordered_map<std::string, size_t> places;
  for (ImageCaption& line : ReadCaptionLines(path)) {
    const auto [place, fresh] = places.emplace(line.image, images.size());
    if (fresh) {
      images.push_back(
          {.id = IdFor(line.image, ids), .file = line.image, .captions = {}, .boxes = {}});
    }
    images[place->second].captions.push_back(std::move(line.caption));
  }
  return images;
}

std::vector<CaptionedImage> ReadCc3mList(const fs::path& path) {
  DelimitedFile file(path, DelimitedFile::Format::kTsv);
  std::vector<CaptionedImage> images;
  for (std::vector<std::string> fields; file.Next(fields);) {
    if (fields.size() != 2) {
      file.Fail("has " + std::to_string(fields.size()) + " fields, expected caption and URL");
    }
    char name[40];
    std::snprintf(name, sizeof(name), "GCC_train_%09llu",
                  static_cast<unsigned long long>(file.line() - 1));
    try {
      images.push_back({.id = name,
                        .file = std::string(name) + ".jpg",
                        .captions = {TidyCaption(fields[0])},
                        .boxes = {}});
    } catch (const std::invalid_argument& error) {
      file.Fail(error.what());
    }
  }
  return images;
}

std::string SymbolicContext(const CaptionedImage& image, bool with_boxes) {
  std::string context;
  for (const std::string& caption : image.captions) {
    if (!context.empty()) context += '\n';
    context += caption;
  }
  if (!with_boxes || image.boxes.empty()) return context;
  context += '\n';
  for (const CaptionedImage::Box& box : image.boxes) {
    context += "\n" + box.category + ": [" + ShortDecimal(box.x1) + ", " + ShortDecimal(box.y1) +
               ", " + ShortDecimal(box.x2) + ", " + ShortDecimal(box.y2) + "]";
  }
  return context;
}

}  // namespace llava
