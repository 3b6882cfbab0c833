#include "model/train/length_order.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace llava {
namespace {

using Indices = std::vector<int64_t>;

// Deals `sorted` (by length, falling) out to `chunks` of equal size, each to the one with the
// smallest sum; by turns if they cannot be equal.
std::vector<Indices> DealOut(const Indices& sorted, std::span<const int64_t> lengths,
                             int64_t chunks) {
  std::vector<Indices> dealt(chunks);
  if (sorted.size() % chunks != 0) {
    for (size_t i = 0; i < sorted.size(); ++i) dealt[i % chunks].push_back(sorted[i]);
    return dealt;
  }
  const size_t size = sorted.size() / chunks;
  std::vector<int64_t> sums(chunks, 0);
  for (const int64_t index : sorted) {
    const size_t shortest = std::min_element(sums.begin(), sums.end()) - sums.begin();
    dealt[shortest].push_back(index);
    sums[shortest] += lengths[index];
    if (dealt[shortest].size() == size) sums[shortest] = std::numeric_limits<int64_t>::max();
  }
  return dealt;
}

std::vector<Indices> Cut(const Indices& indices, int64_t size) {
  std::vector<Indices> parts;
  for (size_t begin = 0; begin < indices.size(); begin += size) {
    parts.emplace_back(indices.begin() + begin,
                       indices.begin() + std::min(indices.size(), begin + size));
  }
  return parts;
}

// One kind by itself. `lengths` by index, all positive.
Indices GroupByLength(Indices indices, std::span<const int64_t> lengths, int64_t batch,
                      int64_t chunks, Random& random) {
  random.Shuffle(indices);
  Indices order;
  for (Indices& megabatch : Cut(indices, batch * chunks)) {
    std::stable_sort(megabatch.begin(), megabatch.end(),
                     [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    for (const Indices& chunk : DealOut(megabatch, lengths, chunks)) {
      order.insert(order.end(), chunk.begin(), chunk.end());
    }
  }
  return order;
}

}  // namespace

std::vector<int64_t> GroupByModalityAndLength(std::span<const int64_t> lengths, int64_t batch,
                                              int64_t chunks, Random& random) {
  Indices pictures, texts;
  std::vector<int64_t> positive;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] == 0) {
      throw std::invalid_argument("sample " + std::to_string(i) + " has length 0");
    }
    (lengths[i] > 0 ? pictures : texts).push_back(static_cast<int64_t>(i));
    positive.push_back(std::abs(lengths[i]));
  }
  pictures = GroupByLength(std::move(pictures), positive, batch, chunks, random);
  texts = GroupByLength(std::move(texts), positive, batch, chunks, random);
  if (texts.empty()) return pictures;
  if (pictures.empty()) return texts;

  std::vector<Indices> megabatches = Cut(pictures, batch * chunks);
  Indices last = std::move(megabatches.back());
  megabatches.pop_back();
  std::vector<Indices> of_texts = Cut(texts, batch * chunks);
  last.insert(last.end(), of_texts.back().begin(), of_texts.back().end());
  of_texts.pop_back();
  megabatches.insert(megabatches.end(), of_texts.begin(), of_texts.end());
  random.Shuffle(megabatches);
  std::sort(last.begin(), last.end());
  megabatches.push_back(std::move(last));
  Indices order;
  for (const Indices& megabatch : megabatches) {
    order.insert(order.end(), megabatch.begin(), megabatch.end());
  }
  return order;
}

}  // namespace llava
