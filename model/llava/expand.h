#pragma once

// A prompt with its pictures' image tokens in the place of their marks.

#include <cstdint>
#include <span>
#include <vector>

#include "model/config/picture_shape.h"

namespace llava {

// Throws std::invalid_argument unless `ids` have a kImageToken for each of `pictures`; `what` of
// them was given: "features of ".
void CheckMarks(std::span<const int32_t> ids, size_t pictures, const char* what);

// Per-id values (labels) over the expanded sequence: `fill` for image tokens. `sizes`: of the
// pictures in pixels, in the order of their marks; needed unless shape.is_fixed(). Throws
// std::invalid_argument unless there is one value per id and, where needed, one size per mark.
std::vector<int64_t> Expand(const PictureShape& shape, std::span<const int32_t> ids,
                            std::span<const int64_t> values, int64_t fill,
                            std::span<const Resolution> sizes = {});

}  // namespace llava
