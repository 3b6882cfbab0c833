// Packed matrices as bytes, and back.
#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "model/ops/cpu/packed_matrix.h"

namespace llava::ops::cpu {
namespace {

static_assert(std::endian::native == std::endian::little, "stored matrices are little-endian");

// In front of the panels, the number of outliers of each panel (uint32), the outliers.
struct StoredHeader {
  std::array<char, 16> layout;
  uint32_t format;  // as WeightFormat counts
  uint32_t group;   // 0: has none
  uint64_t rows, depth;
  uint64_t panel_bytes;
  uint64_t outliers;
  uint64_t zero;
};
static_assert(sizeof(StoredHeader) == 64 && sizeof(Outlier) == 8);

std::array<char, 16> LayoutName() {
  std::array<char, 16> name{};
  const std::string text = PackedMatrix::kStoredLayout;
  text.copy(name.data(), name.size() - 1);
  return name;
}

int64_t BytesOf(const PackedLayout& layout, uint64_t outliers) {
  return static_cast<int64_t>(sizeof(StoredHeader)) + layout.panels * layout.panel_bytes +
         layout.panels * static_cast<int64_t>(sizeof(uint32_t)) +
         static_cast<int64_t>(outliers * sizeof(Outlier));
}

[[noreturn]] void Refuse(const std::string& what) {
  throw std::runtime_error("packed weights: " + what);
}

StoredHeader ReadHeader(std::span<const uint8_t> stored) {
  StoredHeader header;
  if (stored.size() < sizeof(header)) {
    Refuse("their " + std::to_string(stored.size()) + " bytes are cut off within the header");
  }
  std::memcpy(&header, stored.data(), sizeof(header));
  if (header.layout != LayoutName()) {
    std::string found;  // anything may stand there
    for (const char c : header.layout) found += c >= ' ' && c <= '~' ? std::string(1, c) : "";
    Refuse("their layout is \"" + found + "\", this program reads " + PackedMatrix::kStoredLayout);
  }
  if (header.format > static_cast<uint32_t>(WeightFormat::kFloat)) {
    Refuse("their format has the number " + std::to_string(header.format));
  }
  const bool grouped = IsInteger(static_cast<WeightFormat>(header.format));
  if (header.zero != 0 || (header.group != 0) != grouped) Refuse("their header contradicts itself");
  return header;
}

}  // namespace

int64_t PackedMatrix::stored_bytes() const {
  return BytesOf(layout_, static_cast<uint64_t>(num_outliers()));
}

void PackedMatrix::Store(std::span<uint8_t> to) const {
  if (!complete() || static_cast<int64_t>(to.size()) != stored_bytes()) {
    throw std::invalid_argument(Describe() + " with " + std::to_string(appended_) +
                                " rows does not go into " + std::to_string(to.size()) + " bytes");
  }
  const bool grouped = IsInteger(layout_.format);
  const StoredHeader header{LayoutName(),
                            static_cast<uint32_t>(layout_.format),
                            grouped ? static_cast<uint32_t>(layout_.block) : 0,
                            static_cast<uint64_t>(layout_.rows),
                            static_cast<uint64_t>(layout_.depth),
                            static_cast<uint64_t>(layout_.panel_bytes),
                            static_cast<uint64_t>(num_outliers()),
                            0};
  uint8_t* at = to.data();
  const auto put = [&at](const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(at, from, bytes);
    at += bytes;
  };
  put(&header, sizeof(header));
  put(panels_, static_cast<size_t>(layout_.panels * layout_.panel_bytes));
  for (int64_t panel = 0; panel < layout_.panels; ++panel) {
    const auto count = static_cast<uint32_t>(outliers(panel).size);
    put(&count, sizeof(count));
  }
  put(outliers_.data(), outliers_.size() * sizeof(Outlier));
}

PackedMatrix PackedMatrix::Load(std::span<const uint8_t> stored,
                                std::shared_ptr<WeightMemory> memory) {
  const StoredHeader header = ReadHeader(stored);
  const Options options{static_cast<WeightFormat>(header.format), header.group};
  PackedLayout layout;
  try {
    layout =
        LayoutOf(static_cast<int64_t>(header.rows), static_cast<int64_t>(header.depth), options);
  } catch (const std::invalid_argument& error) {
    Refuse(error.what());
  }
  if (header.panel_bytes != static_cast<uint64_t>(layout.panel_bytes)) {
    Refuse("panels of " + std::to_string(header.panel_bytes) + " bytes, expected " +
           std::to_string(layout.panel_bytes));
  }
  if (header.outliers > stored.size() ||
      BytesOf(layout, header.outliers) != static_cast<int64_t>(stored.size())) {
    Refuse("shape [" + std::to_string(header.rows) + ", " + std::to_string(header.depth) +
           "] with " + std::to_string(header.outliers) + " outliers does not fill " +
           std::to_string(stored.size()) + " bytes (cut off?)");
  }

  PackedMatrix matrix(layout.rows, layout.depth, options, std::move(memory));
  const uint8_t* at = stored.data() + sizeof(header);
  const auto take = [&at](void* to, size_t bytes) {
    if (bytes > 0) std::memcpy(to, at, bytes);
    at += bytes;
  };
  take(matrix.panels_, static_cast<size_t>(layout.panels * layout.panel_bytes));
  std::vector<uint32_t> counts(static_cast<size_t>(layout.panels));
  take(counts.data(), counts.size() * sizeof(uint32_t));
  matrix.outliers_.resize(header.outliers);
  take(matrix.outliers_.data(), matrix.outliers_.size() * sizeof(Outlier));
  matrix.found_.clear();
  matrix.appended_ = layout.rows;

  // Kernels trust them: within the matrix, and by column, then by k.
  matrix.first_outlier_.assign(1, 0);
  for (int64_t panel = 0; panel < layout.panels; ++panel) {
    const int64_t first = matrix.first_outlier_.back(), end = first + counts[panel];
    if (end > matrix.num_outliers()) Refuse("more outliers in its panels than there are");
    matrix.first_outlier_.push_back(end);
    for (int64_t i = first; i < end; ++i) {
      const uint32_t where = matrix.outliers_[i].where;
      const auto place = [](uint32_t w) { return std::pair(w % kPanel, w); };
      if (where / kPanel >= layout.depth || panel * kPanel + where % kPanel >= layout.rows ||
          (i > first && !(place(matrix.outliers_[i - 1].where) < place(where)))) {
        Refuse("an outlier of panel " + std::to_string(panel) + " is out of place");
      }
    }
  }
  if (matrix.first_outlier_.back() != matrix.num_outliers()) {
    Refuse("fewer outliers in its panels than there are");
  }
  return matrix;
}

}  // namespace llava::ops::cpu
