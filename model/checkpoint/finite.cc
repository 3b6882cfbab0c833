#include "model/checkpoint/finite.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "model/checkpoint/safetensors.h"

namespace llava {
namespace {

// All bits of the exponent are set. The loop over a block becomes vector instructions, and counting
// is for what is broken.
template <typename Bits>
uint64_t CountWithExponent(std::span<const uint8_t> bytes, Bits exponent) {
  constexpr size_t kBlock = 2048;
  const auto found = [&](size_t i) {  // the file need not be aligned
    Bits bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
    return static_cast<Bits>((bits & exponent) == exponent);
  };
  const size_t values = bytes.size() / sizeof(Bits);
  uint64_t count = 0;
  for (size_t from = 0; from < values; from += kBlock) {
    const size_t to = std::min(from + kBlock, values);
    Bits any = 0;
    for (size_t i = from; i < to; ++i) any |= found(i);
    if (any == 0) continue;
    for (size_t i = from; i < to; ++i) count += found(i);
  }
  return count;
}

}  // namespace

uint64_t CountNonFinite(at::ScalarType dtype, std::span<const uint8_t> bytes) {
  switch (dtype) {
    case at::kFloat:
      return CountWithExponent<uint32_t>(bytes, 0x7f800000);
    case at::kBFloat16:
      return CountWithExponent<uint16_t>(bytes, 0x7f80);
    case at::kHalf:
      return CountWithExponent<uint16_t>(bytes, 0x7c00);
    case at::kDouble:
      return CountWithExponent<uint64_t>(bytes, 0x7ff0000000000000);
    default:
      return 0;
  }
}

std::string DescribeNonFinite(const std::map<std::string, uint64_t>& counts) {
  constexpr size_t kNamed = 8;
  std::string text;
  size_t named = 0;
  for (const auto& [name, count] : counts) {
    if (named++ == kNamed) {
      return text + ", and so on: " + std::to_string(counts.size()) + " tensors";
    }
    text += (text.empty() ? "" : ", ") + std::to_string(count) +
            (count == 1 ? " value" : " values") + " of tensor \"" + name + "\"";
  }
  const bool one = counts.size() == 1 && counts.begin()->second == 1;
  return text.empty() ? "" : text + (one ? " is NaN or infinite" : " are NaN or infinite");
}

bool FiniteCheck::ReadHeader(std::span<const uint8_t> bytes) {
  const uint64_t wanted =
      SafetensorsHeaderBytes(head_.empty() ? bytes : std::span<const uint8_t>(head_));
  const uint64_t missing = wanted > head_.size() ? wanted - head_.size() : 0;
  const auto part = bytes.first(std::min<uint64_t>(missing, bytes.size()));
  head_.insert(head_.end(), part.begin(), part.end());
  if (head_.size() < wanted) return false;
  try {
    for (const auto& [name, place] : ParseSafetensorsHeader(head_, file_bytes_, "")) {
      const bool packed = place.dtype == at::kByte && name.ends_with(".packed");
      if (!packed && !at::isFloatingType(place.dtype)) continue;
      ranges_.push_back({place.offset, place.offset + place.bytes(), place.dtype, name});
    }
  } catch (const std::runtime_error&) {
    ranges_.clear();
  }
  std::sort(ranges_.begin(), ranges_.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  head_ = {};
  return true;
}

void FiniteCheck::Feed(std::span<const uint8_t> bytes) {
  if (!header_read_) header_read_ = ReadHeader(bytes);
  const uint64_t end = position_ + bytes.size();
  for (; header_read_ && next_ < ranges_.size() && ranges_[next_].begin < end; ++next_) {
    const Range& range = ranges_[next_];
    if (range.dtype == at::kByte) {
      const uint64_t first = std::max(position_, range.begin), last = std::min(range.end, end);
      if (first == range.begin) packed_ = {};
      packed_.Feed(bytes.subspan(first - position_, last - first));
      if (range.end > end) break;
      if (packed_.count() > 0) counts_[range.name] = packed_.count();
      continue;
    }
    // Whole elements; where files come in pieces of a power of two and tensors are aligned, that is
    // all of them.
    const uint64_t element = at::elementSize(range.dtype);
    const uint64_t skipped = position_ > range.begin ? position_ - range.begin : 0;
    const uint64_t first = range.begin + (skipped + element - 1) / element * element;
    const uint64_t last = std::min(range.end, end);
    if (last > first) {
      const uint64_t size = (last - first) / element * element;
      const uint64_t count = CountNonFinite(range.dtype, bytes.subspan(first - position_, size));
      if (count > 0) counts_[range.name] += count;
    }
    if (range.end > end) break;
  }
  position_ = end;
}

}  // namespace llava
