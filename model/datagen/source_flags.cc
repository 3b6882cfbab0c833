#include "model/datagen/source_flags.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <filesystem>
#include <stdexcept>

namespace llava {

void SourceFlags::Add(CLI::App& command) {
  const auto add = [&](const char* name, std::string& value, const char* text) {
    return command.add_option(name, value, text)->group("Pictures (one source)");
  };
  CLI::Option* captions =
      add("--coco-captions", coco_captions_, "COCO's captions_*.json, or a file like it");
  add("--coco-instances", coco_instances_, "COCO's instances_*.json with boxes")->needs(captions);
  add("--scenes", scenes_, "Folder made by llava-datagen scenes");
  add("--csv", csv_,
      "Table whose first line names its columns, \"image\" and \"caption\" among them");
  add("--cc3m", cc3m_, "CC3M's list: lines of caption, tab, URL");
}

std::vector<CaptionedImage> SourceFlags::Read() const {
  int sources = 0;
  for (const std::string* source : {&coco_captions_, &scenes_, &csv_, &cc3m_}) {
    sources += source->empty() ? 0 : 1;
  }
  if (sources != 1) {
    throw std::invalid_argument(
        "name one source of pictures: --coco-captions, --scenes, --csv or --cc3m");
  }
  if (!csv_.empty()) return ReadCaptionTable(csv_);
  if (!cc3m_.empty()) return ReadCc3mList(cc3m_);
  if (!scenes_.empty()) {
    const std::filesystem::path folder(scenes_);
    return ReadCoco(folder / "captions.json", folder / "instances.json");
  }
  return ReadCoco(coco_captions_, coco_instances_);
}

}  // namespace llava
