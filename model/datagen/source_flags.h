#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "model/datagen/captioned_images.h"
#include "model/openai/chat.h"

namespace llava {

// Pictures with captions at the command line: --coco-captions, --coco-instances, --scenes, --csv,
// --cc3m.
class SourceFlags {
 public:
  // Must outlive the parsing of `command`.
  void Add(CLI::App& command);
  // After the parsing. Throws std::invalid_argument as the readers, and unless one source is named.
  std::vector<CaptionedImage> Read() const;

 private:
  std::string coco_captions_, coco_instances_, scenes_, csv_, cc3m_;
};

// What teachers are asked where no flag tells.
inline ChatRequest TeacherDefaults() {
  ChatRequest request;
  request.max_tokens = 1200;
  return request;
}

}  // namespace llava
