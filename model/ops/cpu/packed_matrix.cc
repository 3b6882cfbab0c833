#include "model/ops/cpu/packed_matrix.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

namespace llava::ops::cpu {
namespace {

constexpr int64_t kBFloat16Block = 256;  // its part of a panel stays in the first cache
constexpr int64_t kFloatBlock = 128;
constexpr int64_t kUnit = 32;  // what a row of a tile holds, in bfloat16
constexpr int64_t kDepthOfAnOutlier = 512;

const char* NameOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBFloat16:
      return "bfloat16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
    case WeightFormat::kFloat:
      return "float32";
  }
  return "?";
}

float WidenBFloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float WidenHalf(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, rest = bits & 0x7FFF;
  if (rest >= 0x7C00) return std::bit_cast<float>(sign | 0x7F800000 | (rest & 0x3FF) << 13);
  // As if it were a float with a small exponent; the product puts that right, subnormals too.
  const float value = std::bit_cast<float>(rest << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

void Widen(SourceElement element, const void* source, int64_t first, int64_t size, float* to) {
  if (element == SourceElement::kFloat) {
    std::memcpy(to, static_cast<const float*>(source) + first, size * sizeof(float));
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(source) + first;
  if (element == SourceElement::kBFloat16) {
    for (int64_t k = 0; k < size; ++k) to[k] = WidenBFloat16(from[k]);
  } else {
    for (int64_t k = 0; k < size; ++k) to[k] = WidenHalf(from[k]);
  }
}

}  // namespace

PackedLayout PackedMatrix::LayoutOf(int64_t rows, int64_t depth, const Options& options) {
  std::string shape = "[";
  shape += std::to_string(rows) + ", " + std::to_string(depth) + "]";
  constexpr int64_t kMost = std::numeric_limits<uint32_t>::max() / kPanel;
  if (rows < 1 || depth < 1 || rows > kMost || depth > kMost - kPanel) {
    throw std::invalid_argument("packed weights of shape " + shape);
  }
  PackedLayout layout;
  layout.format = options.format;
  layout.rows = rows;
  layout.depth = depth;
  layout.panels = CeilDivide(rows, kPanel);
  if (!IsInteger(options.format)) {
    if (options.group != 0) {
      throw std::invalid_argument(std::string(NameOf(options.format)) +
                                  " weights have no groups, but " + std::to_string(options.group) +
                                  " is asked for");
    }
    const bool floats = options.format == WeightFormat::kFloat;
    layout.block = floats ? kFloatBlock : kBFloat16Block;
    layout.padded_depth = CeilDivide(depth, kUnit) * kUnit;
    layout.blocks = CeilDivide(layout.padded_depth, layout.block);
    layout.block_bytes = layout.block * kPanel * ValueBytes(options.format);
    layout.panel_bytes = layout.padded_depth * kPanel * ValueBytes(options.format);
    return layout;
  }
  const bool int8 = options.format == WeightFormat::kInt8;
  layout.block = options.group != 0 ? options.group : int8 ? 128 : 64;
  const bool wide = int8 && (layout.block == 256 || layout.block == 512 || layout.block == 1024);
  if (layout.block != 32 && layout.block != 64 && layout.block != 128 && !wide) {
    throw std::invalid_argument("weights " + shape + " in groups of " +
                                std::to_string(layout.block) +
                                "; there are 32, 64 and 128, and of int8 256, 512 and 1024");
  }
  layout.blocks = CeilDivide(depth, layout.block);
  layout.padded_depth = layout.blocks * layout.block;
  layout.block_bytes = kScaleBytes + layout.block * kPanel / (int8 ? 1 : 2);
  layout.panel_bytes = layout.blocks * layout.block_bytes;
  return layout;
}

PackedMatrix::PackedMatrix(int64_t rows, int64_t depth, const Options& options,
                           std::shared_ptr<WeightMemory> memory)
    : layout_(LayoutOf(rows, depth, options)),
      keep_outliers_(options.keep_outliers && IsInteger(options.format)),
      memory_(memory ? std::move(memory) : std::make_shared<WeightMemory>()),
      panels_(memory_->Allocate(static_cast<size_t>(layout_.panels * layout_.panel_bytes))),
      found_(layout_.panels) {}

void PackedMatrix::AppendBFloat16(ThreadPool& pool, const uint16_t* source, int64_t rows,
                                  int64_t stride) {
  constexpr int64_t kPairs = 128;  // of a row at a time: rows of weights lie a power of two apart,
                                   // which the first cache has few places for
  const int64_t begin = appended_, end = appended_ + rows;
  const int64_t first_panel = begin / kPanel, last_panel = (end - 1) / kPanel;
  pool.Run(last_panel - first_panel + 1, [&](int64_t index, int) {
    const int64_t panel = first_panel + index;
    const int64_t from = std::max(begin, panel * kPanel), to = std::min(end, (panel + 1) * kPanel);
    auto* const out = reinterpret_cast<uint32_t*>(panels_ + panel * layout_.panel_bytes);
    uint32_t block[kPanel][kPairs];
    for (int64_t k = 0; k < layout_.padded_depth; k += 2 * kPairs) {
      const int64_t pairs = std::min(kPairs, (layout_.padded_depth - k) / 2);
      const int64_t there = std::clamp<int64_t>(layout_.depth - k, 0, 2 * pairs);
      for (int64_t row = from; row < to; ++row) {
        uint32_t* const line = block[row - from];
        if (there < 2 * pairs) std::fill_n(line, pairs, 0);
        std::memcpy(line, source + (row - begin) * stride + k, static_cast<size_t>(there) * 2);
      }
      uint32_t* const to_pairs = out + k / 2 * kPanel + from % kPanel;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        for (int64_t row = 0; row < to - from; ++row) {
          to_pairs[pair * kPanel + row] = block[row][pair];
        }
      }
    }
  });
}

void PackedMatrix::Append(ThreadPool& pool, SourceElement element, const void* source, int64_t rows,
                          int64_t stride) {
  if (rows < 1 || rows > layout_.rows - appended_ || stride < layout_.depth) {
    throw std::invalid_argument(std::to_string(rows) + " rows, " + std::to_string(stride) +
                                " apart, behind " + std::to_string(appended_) + " of " +
                                Describe());
  }
  if (element == SourceElement::kBFloat16 && layout_.format == WeightFormat::kBFloat16) {
    AppendBFloat16(pool, static_cast<const uint16_t*>(source), rows, stride);
    appended_ += rows;
    if (complete()) Seal();
    return;
  }
  const Kernels& kernels = Best();
  const int64_t begin = appended_, end = appended_ + rows;
  const int64_t first_panel = begin / kPanel, last_panel = (end - 1) / kPanel;
  const int64_t most_outliers = layout_.depth / kDepthOfAnOutlier + 1;
  struct Scratch {
    std::vector<float> rows, means;
    std::vector<Outlier> outliers;
  };
  std::vector<Scratch> scratches(pool.threads());
  pool.Run(last_panel - first_panel + 1, [&](int64_t index, int worker) {
    Scratch& scratch = scratches[worker];
    scratch.rows.resize(layout_.padded_depth);
    scratch.means.resize(layout_.blocks);
    scratch.outliers.resize(most_outliers);
    const int64_t panel = first_panel + index;
    const int64_t stop = std::min(end, (panel + 1) * kPanel);
    for (int64_t row = std::max(begin, panel * kPanel); row < stop; ++row) {
      Widen(element, source, (row - begin) * stride, layout_.depth, scratch.rows.data());
      PackTask task{&layout_,
                    panels_ + panel * layout_.panel_bytes,
                    row - panel * kPanel,
                    scratch.rows.data(),
                    scratch.means.data(),
                    keep_outliers_ ? scratch.outliers.data() : nullptr,
                    most_outliers,
                    0};
      kernels.pack(task);
      found_[panel].insert(found_[panel].end(), scratch.outliers.begin(),
                           scratch.outliers.begin() + task.num_outliers);
    }
  });
  appended_ = end;
  if (complete()) Seal();
}

void PackedMatrix::Seal() {
  first_outlier_.assign(1, 0);
  for (std::vector<Outlier>& found : found_) {
    std::sort(found.begin(), found.end(), [](const Outlier& a, const Outlier& b) {
      return std::pair(a.where % kPanel, a.where) < std::pair(b.where % kPanel, b.where);
    });
    first_outlier_.push_back(first_outlier_.back() + static_cast<int64_t>(found.size()));
  }
  outliers_.reserve(first_outlier_.back());
  for (std::vector<Outlier>& found : found_) {
    outliers_.insert(outliers_.end(), found.begin(), found.end());
    std::vector<Outlier>().swap(found);
  }
  found_.clear();
}

int64_t PackedMatrix::bytes() const {
  return layout_.panels * layout_.panel_bytes +
         num_outliers() * static_cast<int64_t>(sizeof(Outlier));
}

std::string PackedMatrix::Describe() const {
  std::string text = NameOf(layout_.format);
  text += " [" + std::to_string(layout_.rows) + ", " + std::to_string(layout_.depth) + "]";
  if (IsInteger(layout_.format)) {
    text += " in groups of " + std::to_string(layout_.block);
  }
  return text;
}

void PackedMatrix::Unpack(int64_t row, float* out) const {
  if (row < 0 || row >= layout_.rows || !complete()) {
    throw std::invalid_argument("row " + std::to_string(row) + " of " + Describe() + ", of which " +
                                std::to_string(appended_) + " rows are there");
  }
  const uint8_t* at = panel(row / kPanel);
  const int64_t column = row % kPanel;
  for (int64_t k = 0; k < layout_.depth; ++k) {
    if (layout_.format == WeightFormat::kBFloat16) {
      uint16_t bits;
      std::memcpy(&bits, at + (k / 2 * 2 * kPanel + column * 2 + k % 2) * 2, sizeof(bits));
      out[k] = WidenBFloat16(bits);
      continue;
    }
    if (layout_.format == WeightFormat::kFloat) {
      std::memcpy(out + k, at + (k * kPanel + column) * 4, sizeof(float));
      continue;
    }
    const uint8_t* block = at + k / layout_.block * layout_.block_bytes;
    const int64_t i = k % layout_.block;
    uint16_t scale;
    std::memcpy(&scale, block + column * 2, sizeof(scale));
    const uint8_t* values = block + kScaleBytes + column * 4 + k % 4;
    const int value = layout_.format == WeightFormat::kInt8
                          ? values[i / 4 * 4 * kPanel] - 128
                          : (values[i / 8 * 4 * kPanel] >> (i % 8 / 4 * 4) & 15) - 8;
    out[k] = static_cast<float>(value) * WidenBFloat16(scale);
  }
  const Outliers apart = outliers(row / kPanel);
  for (int64_t i = 0; i < apart.size; ++i) {
    const Outlier& outlier = apart.data[i];
    if (outlier.where % kPanel == column) out[outlier.where / kPanel] += outlier.value;
  }
}

}  // namespace llava::ops::cpu
