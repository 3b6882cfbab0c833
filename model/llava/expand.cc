#include "model/llava/expand.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "model/text/labels.h"

namespace llava {

void CheckMarks(std::span<const int32_t> ids, size_t pictures, const char* what) {
  const auto marks = static_cast<size_t>(std::count(ids.begin(), ids.end(), kImageToken));
  if (marks == pictures) return;
  throw std::invalid_argument("the prompt has " + std::to_string(marks) + " image marks, but " +
                              what + std::to_string(pictures) + " pictures were given");
}

std::vector<int64_t> Expand(const PictureShape& shape, std::span<const int32_t> ids,
                            std::span<const int64_t> values, int64_t fill,
                            std::span<const Resolution> sizes) {
  if (ids.size() != values.size()) {
    throw std::invalid_argument(std::to_string(values.size()) + " labels for " +
                                std::to_string(ids.size()) + " token ids");
  }
  if (!shape.is_fixed()) CheckMarks(ids, sizes.size(), "sizes of ");
  std::vector<int64_t> result;
  size_t picture = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != kImageToken) {
      result.push_back(values[i]);
      continue;
    }
    const Resolution size = shape.is_fixed() ? Resolution() : sizes[picture++];
    result.insert(result.end(), static_cast<size_t>(shape.NumTokens(size)), fill);
  }
  return result;
}

}  // namespace llava
