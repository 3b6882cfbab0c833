#include "model/train/row_plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "model/data/scenes/random.h"
#include "model/train/length_order.h"

namespace llava {
namespace {

constexpr uint64_t kOrder = 111;  // purpose of random numbers

}  // namespace

RowPlan::RowPlan(const RecordSurvey& survey, const RowPlanOptions& options) : options_(options) {
  uint64_t picture = 0;  // of the row
  for (const int64_t number : survey.usable) {
    const RecordFacts& facts = survey.facts[number];
    const int64_t own = facts.tokens - facts.image_tokens;
    const bool joins = options.pack && picture != 0 && facts.picture == picture &&
                       tokens_.back() + own <= options.row_tokens;
    if (!joins) {
      begins_.push_back(static_cast<int64_t>(records_.size()));
      lengths_.push_back(0);
      tokens_.push_back(facts.tokens - own);
      picture = facts.picture;
    }
    tokens_.back() += own;
    records_.push_back(number);
    lengths_.back() += facts.picture != 0 ? facts.words : -facts.words;
  }
  begins_.push_back(static_cast<int64_t>(records_.size()));
  if (!options.by_tokens) return;
  for (int64_t row = 0; row < rows(); ++row) {
    lengths_[row] = lengths_[row] > 0 ? tokens_[row] : -tokens_[row];
  }
}

std::span<const int64_t> RowPlan::Records(int64_t row) const {
  return std::span(records_).subspan(begins_[row], begins_[row + 1] - begins_[row]);
}

RowPlan::Place RowPlan::At(int64_t position) const {
  const auto epoch = static_cast<uint64_t>(position / rows());
  std::shared_ptr<const std::vector<int64_t>> order;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [known, its_order] : orders_) {
      if (known == epoch) order = its_order;
    }
    if (!order) {
      order = std::make_shared<const std::vector<int64_t>>(OrderOf(epoch));
      if (orders_.size() == 2) orders_.erase(orders_.begin());
      orders_.emplace_back(epoch, order);
    }
  }
  return {epoch, (*order)[position % rows()]};
}

std::vector<int64_t> RowPlan::OrderOf(uint64_t epoch) const {
  Random random(options_.seed, epoch, kOrder);
  if (options_.order == RowOrder::kByLength) {
    return GroupByModalityAndLength(lengths_, options_.batch, options_.accumulation, random);
  }
  std::vector<int64_t> order(rows());
  std::iota(order.begin(), order.end(), int64_t{0});
  if (options_.order == RowOrder::kShuffled) random.Shuffle(order);
  return order;
}

}  // namespace llava
