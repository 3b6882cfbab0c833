#include "server/llm/scheduler.h"

#include <algorithm>
#include <numeric>

namespace llava {
namespace {

// The newest of steps counts for so much in what is learnt from them.
constexpr double kNews = 0.2;
// An idle worker without any prefix is worth as much as so many cached rows.
constexpr double kFreeWorker = 32;
// Prompts take at least this share of the time of a step, however noisy the clock.
constexpr double kLeastOfStep = 0.05;

void Learn(double& mean, double value) { mean = mean == 0 ? value : mean + kNews * (value - mean); }

class Planner {
 public:
  Planner(std::span<const SequenceView> running, const StepLimits& limits,
          const std::function<int64_t(size_t)>& regained)
      : running_(running),
        regained_(regained),
        block_rows_(limits.block_rows),
        available_(limits.available_blocks),
        order_(running.size()) {
    plan_.rows.assign(running.size(), 0);
    plan_.preempted.assign(running.size(), false);
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return running[a].priority > running[b].priority; });
  }

  StepPlan Plan(int64_t prompt_rows) {
    for (const size_t i : order_) {
      if (running_[i].decodes && !plan_.preempted[i]) PlanDecode(i);
    }
    PlanPrompts(prompt_rows);
    // Prompts that hold each other up: the last one begins again later.
    while (std::all_of(plan_.rows.begin(), plan_.rows.end(), [](int64_t n) { return n == 0; })) {
      const size_t last = LastRunning();
      if (last == kNobody || last == FirstRunning()) break;
      Preempt(last);
      PlanPrompts(prompt_rows);
    }
    return std::move(plan_);
  }

 private:
  static constexpr size_t kNobody = static_cast<size_t>(-1);

  size_t FirstRunning() const {
    const auto it =
        std::find_if(order_.begin(), order_.end(), [&](size_t i) { return !plan_.preempted[i]; });
    return it == order_.end() ? kNobody : *it;
  }
  size_t LastRunning() const {
    const auto it =
        std::find_if(order_.rbegin(), order_.rend(), [&](size_t i) { return !plan_.preempted[i]; });
    return it == order_.rend() ? kNobody : *it;
  }

  void Preempt(size_t i) {
    plan_.preempted[i] = true;
    available_ += regained_(i);
  }

  int64_t BlocksFor(size_t i, int64_t rows) const {
    const int64_t beyond = std::max<int64_t>(0, rows - running_[i].room);
    return (beyond + block_rows_ - 1) / block_rows_;
  }

  void PlanDecode(size_t i) {
    while (BlocksFor(i, 1) > available_) {
      const size_t last = LastRunning();
      Preempt(last);
      if (last == i) return;
    }
    Give(i, 1);
  }

  void Give(size_t i, int64_t rows) {
    available_ -= BlocksFor(i, plan_.rows[i] + rows) - BlocksFor(i, plan_.rows[i]);
    plan_.rows[i] += rows;
  }

  // Up to `rows` more rows of prompt i; returns how many.
  int64_t GivePrompt(size_t i, int64_t rows) {
    const SequenceView& view = running_[i];
    rows = std::min(rows, view.left - plan_.rows[i]);
    while (rows > 0 && BlocksFor(i, plan_.rows[i] + 1) - BlocksFor(i, plan_.rows[i]) > available_) {
      const size_t last = LastRunning();
      if (running_[last].priority >= view.priority || plan_.rows[last] > 0) return 0;
      Preempt(last);
    }
    const int64_t held = BlocksFor(i, plan_.rows[i]) + available_;
    rows = std::min(rows, view.room + held * block_rows_ - plan_.rows[i]);
    if (rows > 0) Give(i, rows);
    return rows;
  }

  void PlanPrompts(int64_t budget) {
    std::vector<size_t> prompts;
    for (const size_t i : order_) {
      if (!running_[i].decodes && !plan_.preempted[i]) prompts.push_back(i);
    }
    if (prompts.empty()) return;
    const bool alone = prompts.size() == 1;
    budget -= GivePrompt(prompts[0], alone ? budget : (budget + 1) / 2);
    std::stable_sort(prompts.begin(), prompts.end(), [&](size_t a, size_t b) {
      if (running_[a].priority != running_[b].priority) {
        return running_[a].priority > running_[b].priority;
      }
      return running_[a].left < running_[b].left;
    });
    for (const size_t i : prompts) {
      if (!plan_.preempted[i]) budget -= GivePrompt(i, budget);
    }
  }

  std::span<const SequenceView> running_;
  const std::function<int64_t(size_t)>& regained_;
  const int64_t block_rows_;
  int64_t available_;
  std::vector<size_t> order_;  // by priority and arrival
  StepPlan plan_;
};

}  // namespace

bool CanJoin(int64_t blocks, int64_t running, const Capacity& capacity) {
  return running < capacity.max_running &&
         (running == 0 || blocks + running <= capacity.available_blocks);
}

double RouteScore(int64_t cached, double load) {
  return (kFreeWorker + static_cast<double>(cached)) * std::max(0.0, 1 - load);
}

StepPlan PlanStep(std::span<const SequenceView> running, const StepLimits& limits,
                  const std::function<int64_t(size_t)>& regained) {
  return Planner(running, limits, regained).Plan(limits.prompt_rows);
}

int64_t PromptBudget::Rows(int64_t decoding) const {
  if (decoding == 0 || decode_seconds_ == 0 || row_seconds_ == 0) return most_rows_;
  const double spare = (slowdown_ - 1) * decode_seconds_;
  const double rows = std::min(spare / row_seconds_, static_cast<double>(most_rows_));
  return std::min(most_rows_, std::max(kLeastRows, static_cast<int64_t>(rows)));
}

void PromptBudget::Observe(int64_t decoding, int64_t prompt_rows, double seconds) {
  if (prompt_rows == 0) {
    if (decoding > 0) Learn(decode_seconds_, seconds);
    return;
  }
  // Of a few rows most of the time is that of reading the weights, which says nothing of more.
  if (decoding == 0 && prompt_rows < kLeastRows) return;
  const double usual = decoding > 0 ? decode_seconds_ : 0;
  const double more = std::max(seconds - usual, kLeastOfStep * seconds);
  Learn(row_seconds_, more / static_cast<double>(prompt_rows));
}

}  // namespace llava
