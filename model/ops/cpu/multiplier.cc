#include "model/ops/cpu/multiplier.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace llava::ops::cpu {
namespace {

// Rows that pass through a panel while it is in a cache; a multiple of kRowBlock.
constexpr int64_t kRowsAtOnce = 512;
// Activations that stay in the second cache while several panels pass, and the next ones are
// fetched: of integers, and of numbers that many more products are made with.
constexpr int64_t kActivationBytes = 640 << 10;
constexpr int64_t kFloatActivationBytes = 256 << 10;
constexpr int64_t kUnitBytes = 64;  // of a tile's line
// Weights of one task: long enough to read that handing it out costs nothing.
constexpr int64_t kTaskBytes = 256 << 10;
// Panels that share a part of the activations, if these are many.
constexpr int64_t kPanelsAtOnce = 8;
constexpr int64_t kTasksPerThread = 4;
// Elements of x that are prepared at a time; twice as many are not worth waking anybody.
constexpr int64_t kPrepareElements = 8 << 10;
// Nor are so many bytes of weights times rows.
constexpr int64_t kAloneBytes = 32 << 10;

std::string Shape(int64_t rows, int64_t columns) {
  std::string shape = "[";
  shape += std::to_string(rows) + ", " + std::to_string(columns) + "]";
  return shape;
}

void Check(const Multiplier::Input& x, const PackedMatrix& weights, const Multiplier::Output& y) {
  const auto refuse = [&](const std::string& why) {
    throw std::invalid_argument("product of " + Shape(x.rows, x.columns) + " with " +
                                weights.Describe() + " into " + Shape(y.rows, y.columns) + ": " +
                                why);
  };
  if (!weights.complete()) refuse("the weights are not complete");
  if (x.rows < 0 || x.columns != weights.depth()) refuse("x does not fit");
  if (y.rows != x.rows || y.columns != weights.rows()) refuse("y does not fit");
  if (x.rows == 0) return;
  if (x.data == nullptr || y.data == nullptr) refuse("no data");
  if (x.rows > 1 && (x.stride < x.columns || y.stride < y.columns)) refuse("rows overlap");
}

}  // namespace

Multiplier::Multiplier(ThreadPool& pool, const Kernels& kernels)
    : pool_(pool), kernels_(kernels), sums_(pool.threads()), normed_(pool.threads()) {}

void Multiplier::Multiply(const Input& x, const PackedMatrix& weights, const Output& y, Store store,
                          const Finishing& finishing) {
  Check(x, weights, y);
  if (x.rows == 0) return;
  Prepare(x, weights);
  MultiplyPrepared(weights, y, store, finishing);
}

void Multiplier::Prepare(const Input& x, const PackedMatrix& weights) {
  const PackedLayout& layout = weights.layout();
  const bool integers = IsInteger(layout.format);
  Activations& to = activations_;
  to = {};
  to.rows = x.rows;
  if (x.padded && x.norm == nullptr && x.element == Element::kBFloat16 &&
      layout.format == WeightFormat::kBFloat16 && layout.depth == layout.padded_depth) {
    to.values = static_cast<uint8_t*>(const_cast<void*>(x.data));  // nobody writes to it
    to.line = x.stride * 2;
    return;
  }
  const int64_t row_blocks = CeilDivide(x.rows, kRowBlock);
  const int64_t block_bytes = layout.block * ValueBytes(layout.format);
  if (x.rows > kRowBlock) {
    to.unit = std::min(block_bytes, kUnitBytes);
    to.values = values_.Get(layout.blocks * row_blocks * kRowBlock * block_bytes);
  } else {
    to.line = layout.padded_depth * ValueBytes(layout.format);
    to.values = values_.Get(kRowBlock * to.line);  // tiles read all of them
  }
  if (integers) {
    const int64_t scales = x.rows * layout.blocks + kRowBlock;  // tiles read whole ones
    to.scales = reinterpret_cast<float*>(scales_.Get(scales * 4));
    to.corrections = reinterpret_cast<int32_t*>(corrections_.Get(scales * 4));
  }
  if (weights.num_outliers() > 0 && layout.block <= kLargestExactGroup) {
    to.lanes = x.rows == 1 ? 1 : kRowBlock;
    const int64_t rows = x.rows == 1 ? 1 : row_blocks * kRowBlock;
    to.exact = reinterpret_cast<float*>(exact_.Get(rows * layout.depth * 4));
  }
  const int64_t blocks =
      x.norm != nullptr
          ? layout.blocks
          : std::max<int64_t>(1, kPrepareElements / (std::min(x.rows, kRowBlock) * layout.block));
  const int64_t parts = CeilDivide(layout.blocks, blocks);
  const int64_t element = BytesOf(x.element);
  const auto prepare = [&](int64_t index, int worker) {
    const int64_t first = index / parts * kRowBlock, block = index % parts * blocks;
    float* scratch = nullptr;
    if (x.norm != nullptr) {
      scratch = reinterpret_cast<float*>(normed_[worker].Get(kRowBlock * layout.depth * 4));
    }
    kernels_.prepare({&layout,
                      &to,
                      x.element,
                      {static_cast<const uint8_t*>(x.data) + first * x.stride * element, x.stride},
                      first,
                      std::min(kRowBlock, x.rows - first),
                      block,
                      std::min(blocks, layout.blocks - block),
                      x.norm,
                      scratch});
  };
  if (x.rows * layout.depth <= 2 * kPrepareElements) {
    for (int64_t i = 0; i < row_blocks * parts; ++i) prepare(i, 0);
  } else {
    pool_.Run(row_blocks * parts, prepare);
  }
}

void Multiplier::MultiplyPrepared(const PackedMatrix& weights, const Output& y, Store store,
                                  const Finishing& finishing) {
  const PackedLayout& layout = weights.layout();
  const int64_t rows = activations_.rows;
  // Parts of equal size, so that threads end together.
  const int64_t row_parts = CeilDivide(rows, kRowsAtOnce);
  const int64_t part_rows =
      CeilDivide(CeilDivide(rows, row_parts), 2 * kRowBlock) * (2 * kRowBlock);
  // Panels of a task, and how many of them pass through a part of the activations together.
  const int64_t enough =
      std::max<int64_t>(1, layout.panels * row_parts / (kTasksPerThread * pool_.threads()));
  const int64_t of_bytes = std::max<int64_t>(1, kTaskBytes / layout.panel_bytes);
  const bool few = rows <= 2 * kRowBlock;
  const int64_t panels = std::min(enough, few ? of_bytes : kPanelsAtOnce);
  const int64_t together = few ? 1 : panels;
  const int64_t parts = CeilDivide(layout.panels, panels);
  const int64_t row_bytes = layout.block * ValueBytes(layout.format);
  const int64_t kept = IsInteger(layout.format) ? kActivationBytes : kFloatActivationBytes;
  const int64_t blocks = std::max<int64_t>(1, kept / (std::min(rows, part_rows) * row_bytes));
  // What is read after panel `panel` of [first, last) and its blocks from `block` on: of the next
  // panel, else of the next blocks.
  const auto set_next = [&](int64_t panel, int64_t first, int64_t last, PanelTask& task) {
    const bool wraps = task.first_block + task.blocks == layout.blocks;
    const int64_t then = wraps ? 0 : task.first_block + task.blocks;
    task.next_weights = {
        panel + 1 < last ? task.panel + layout.panel_bytes + task.first_block * layout.block_bytes
        : wraps          ? task.panel + layout.panel_bytes
                         : weights.panel(first) + then * layout.block_bytes,
        task.blocks * layout.block_bytes};
    if (activations_.unit == 0 || row_parts > 1) return;
    const int64_t of_block = CeilDivide(rows, kRowBlock) * kRowBlock * row_bytes;
    const int64_t share = std::min(blocks, layout.blocks - then) * of_block / (last - first);
    task.next_values = {activations_.values + then * of_block + (panel - first) * share, share};
  };

  const auto multiply = [&](int64_t index, int worker) {
    const int64_t first_row = index % row_parts * part_rows;
    const int64_t count = std::min(part_rows, rows - first_row);
    if (count <= 0) return;
    const int64_t begin = index / row_parts * panels, end = std::min(begin + panels, layout.panels);
    const int64_t lines = CeilDivide(count, kRowBlock) * kRowBlock;  // tiles write whole ones
    float* sums = reinterpret_cast<float*>(sums_[worker].Get(together * lines * kPanel * 4));
    for (int64_t first = begin; first < end; first += together) {
      const int64_t last = std::min(first + together, end);
      for (int64_t block = 0; block < layout.blocks; block += blocks) {
        for (int64_t panel = first; panel < last; ++panel) {
          PanelTask task;
          task.layout = &layout;
          task.activations = &activations_;
          task.panel = weights.panel(panel);
          task.first_row = first_row;
          task.rows = count;
          task.first_block = block;
          task.blocks = std::min(blocks, layout.blocks - block);
          task.sums = sums + (panel - first) * lines * kPanel;
          set_next(panel, first, last, task);
          kernels_.multiply_panel(task);
        }
      }
      // Some rows at a time through all panels, so that what is written lies together.
      for (int64_t row = 0; row < count; row += kRowBlock) {
        for (int64_t panel = first; panel < last; ++panel) {
          const PackedMatrix::Outliers outliers = weights.outliers(panel);
          FinishTask task;
          task.layout = &layout;
          task.activations = &activations_;
          task.panel = panel;
          task.first_row = first_row + row;
          task.rows = std::min(kRowBlock, count - row);
          task.sums = sums + ((panel - first) * lines + row) * kPanel;
          task.outliers = outliers.data;
          task.num_outliers = outliers.size;
          task.element = y.element;
          task.y = {y.data, y.stride};
          task.add = store == Store::kAdd;
          task.bias = finishing.bias;
          task.function = finishing.function;
          kernels_.finish(task);
        }
      }
    }
  };
  if (layout.panels * layout.panel_bytes * rows <= kAloneBytes) {
    for (int64_t i = 0; i < parts * row_parts; ++i) multiply(i, 0);
  } else {
    pool_.Run(parts * row_parts, multiply);
  }
}

}  // namespace llava::ops::cpu
