#include "model/checkpoint/packed_finite.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "model/checkpoint/finite.h"

namespace llava {
namespace {

constexpr std::string_view kLayout = "panel32.v1";
constexpr uint64_t kPanel = 32;
constexpr uint64_t kMost = uint64_t{1} << 40;  // bytes of a matrix: sums of such do not overflow

enum Format : uint32_t { kBFloat16 = 0, kInt8 = 1, kInt4 = 2 };

template <typename Number>
Number ReadAt(std::span<const uint8_t> bytes, size_t offset) {
  Number number;
  std::memcpy(&number, bytes.data() + offset, sizeof(number));
  return number;
}

}  // namespace

void PackedFiniteCheck::ReadHeader() {
  const std::span<const uint8_t> header(held_);
  const auto format = ReadAt<uint32_t>(header, 16), group = ReadAt<uint32_t>(header, 20);
  const auto rows = ReadAt<uint64_t>(header, 24), panel_bytes = ReadAt<uint64_t>(header, 40);
  const uint64_t panels = rows / kPanel + (rows % kPanel > 0 ? 1 : 0);
  if (std::memcmp(held_.data(), kLayout.data(), kLayout.size()) != 0 || format > kInt4 ||
      panel_bytes == 0 || panels == 0 || panel_bytes > kMost / panels) {
    return;
  }
  const uint64_t values = uint64_t{group} * kPanel / (format == kInt4 ? 2 : 1);
  const uint64_t period = kUnit + (format == kBFloat16 ? 0 : values);
  if (panel_bytes % period != 0) return;
  period_ = period;
  panels_end_ = kHeaderBytes + panels * panel_bytes;
  outliers_begin_ = panels_end_ + panels * sizeof(uint32_t);
}

size_t PackedFiniteCheck::Take(std::span<const uint8_t> bytes) {
  const auto hold = [&](size_t offset, size_t unit) {
    const size_t size = std::min(unit - offset, bytes.size());
    std::memcpy(held_.data() + offset, bytes.data(), size);
    return size;
  };
  if (position_ < kHeaderBytes) {
    const size_t size = hold(position_, kHeaderBytes);
    if (position_ + size == kHeaderBytes) ReadHeader();
    return size;
  }
  if (period_ == 0) return bytes.size();
  if (position_ < panels_end_) {
    const uint64_t offset = (position_ - kHeaderBytes) % period_;
    if (offset >= kUnit) return std::min<uint64_t>(period_ - offset, bytes.size());
    if (offset == 0 && bytes.size() >= kUnit) {
      const uint64_t left = std::min<uint64_t>(bytes.size(), panels_end_ - position_);
      const size_t size = period_ == kUnit ? left / kUnit * kUnit : kUnit;
      count_ += CountNonFinite(at::kBFloat16, bytes.first(size));
      return size;
    }
    const size_t size = hold(offset, kUnit);
    if (offset + size == kUnit) count_ += CountNonFinite(at::kBFloat16, held_);
    return size;
  }
  if (position_ < outliers_begin_) {
    return std::min<uint64_t>(outliers_begin_ - position_, bytes.size());
  }
  const uint64_t offset = (position_ - outliers_begin_) % kOutlierBytes;
  const size_t size = hold(offset, kOutlierBytes);
  if (offset + size == kOutlierBytes) {
    count_ += CountNonFinite(at::kFloat, std::span(held_).subspan(4, 4));
  }
  return size;
}

void PackedFiniteCheck::Feed(std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const size_t size = Take(bytes);
    position_ += size;
    bytes = bytes.subspan(size);
  }
}

}  // namespace llava
