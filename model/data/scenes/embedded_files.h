#pragma once

// Files of deploy/scenes-data, built in by embed_file.cmake. Constant data.

#include <string_view>

namespace llava {

std::string_view CategoriesJson();  // categories.json
std::string_view SpriteAtlasPng();  // sprites.png

}  // namespace llava
