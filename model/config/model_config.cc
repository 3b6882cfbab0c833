#include "model/config/model_config.h"

#include <charconv>
#include <stdexcept>
#include <string_view>

namespace llava {
namespace {

constexpr int64_t kMaxDepth = 16;  // far above anything published; keeps typing errors out

}  // namespace

std::string Quantization::Describe() const {
  return group == 0 ? format : format + "/" + std::to_string(group);
}

std::string ProjectorConfig::type() const {
  return depth == 1 ? "linear" : "mlp" + std::to_string(depth) + "x_gelu";
}

int64_t ProjectorConfig::DepthOf(const std::string& type) {
  if (type == "linear") return 1;
  constexpr std::string_view kPrefix = "mlp", kSuffix = "x_gelu";
  if (type.size() > kPrefix.size() + kSuffix.size() && type.starts_with(kPrefix) &&
      type.ends_with(kSuffix)) {
    const char* end = type.data() + type.size() - kSuffix.size();
    int64_t depth = 0;
    const auto result = std::from_chars(type.data() + kPrefix.size(), end, depth);
    if (result.ec == std::errc() && result.ptr == end && depth >= 1 && depth <= kMaxDepth) {
      return depth;
    }
  }
  throw std::invalid_argument("unknown projector type \"" + type +
                              "\"; known: linear, mlpNx_gelu with N from 1 to " +
                              std::to_string(kMaxDepth));
}

}  // namespace llava
