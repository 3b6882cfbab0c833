#pragma once

// The pictures of the categories, scaled on demand.

#include <cstdint>
#include <vector>

#include "model/data/scenes/category.h"

namespace llava {

// Colours already multiplied by alpha, rows top to bottom.
struct Sprite {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> rgba;  // [height, width, 4]
};

// Cache of scaled sprites. One thread; the decoded atlas behind it is shared by all.
class Sprites {
 public:
  Sprites();
  // The sprite of a category for an object of this size: as large as BoxOf says.
  const Sprite& Scaled(int category, int size);

 private:
  std::vector<std::vector<Sprite>> cache_;  // [category][size], empty until asked for
};

}  // namespace llava
