#include "server/llm/scheduler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace llava {
namespace {

// What an idle worker without any prefix is worth, in cached rows: about what a step costs beside
// its rows (1.1B in int8 on two cores: 50 ms, and 1.5 ms a row), and who joins others waits for
// one.
constexpr double kFreeWorker = 32;
// Of prompts in a step, whatever it takes: kernels compute so many rows together, fewer would cost
// as much. A whole block, too.
constexpr int64_t kLeastRows = 16;
// Steps may be so many times as large as what their cost was learnt from.
constexpr int64_t kTrustedGrowth = 2;

// What is left of a step for prompts.
struct Share {
  int64_t rows = 0;
  double seconds = 0;
  int64_t least = 0;  // rows, whatever they take

  Share Half() const { return {(rows + 1) / 2, seconds / 2, (least + 1) / 2}; }
};

class Planner {
 public:
  Planner(std::span<const SequenceView> running, const StepLimits& limits,
          const std::function<int64_t(size_t)>& regained)
      : running_(running),
        regained_(regained),
        limits_(limits),
        available_(limits.available_blocks),
        pictures_(limits.pictures),
        order_(running.size()) {
    plan_.rows.assign(running.size(), 0);
    plan_.preempted.assign(running.size(), false);
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return running[a].priority > running[b].priority; });
  }

  StepPlan Plan() {
    for (const size_t i : order_) {
      if (running_[i].decodes && !plan_.preempted[i]) PlanDecode(i);
    }
    PlanPrompts();
    return std::move(plan_);
  }

 private:
  // There is one: who asks for blocks runs.
  size_t LastRunning() const {
    return *std::find_if(order_.rbegin(), order_.rend(),
                         [&](size_t i) { return !plan_.preempted[i]; });
  }

  void Preempt(size_t i) {
    plan_.preempted[i] = true;
    available_ += regained_(i);
  }

  void PlanDecode(size_t i) {
    const int64_t blocks = running_[i].room > 0 ? 0 : 1;
    while (blocks > available_) {
      const size_t last = LastRunning();
      Preempt(last);
      if (last == i) return;
    }
    available_ -= blocks;
    plan_.rows[i] = 1;
  }

  double Cost(int64_t computed, int64_t rows) const {
    return limits_.row_seconds * static_cast<double>(rows) +
           limits_.key_seconds * static_cast<double>(KeysOf(computed, rows));
  }

  // Rows behind `computed` ones that take `seconds`: the root of Cost.
  static double RowsIn(double seconds, double each, double key) {
    if (key <= 0) return seconds / each;
    return (std::sqrt(each * each + 2 * key * seconds) - each) / key;
  }

  // Rows of a prompt, of which `computed` are there, that fit into the share.
  int64_t Fitting(const Share& share, int64_t computed) const {
    const double key = limits_.key_seconds;
    const double each = limits_.row_seconds + key * (static_cast<double>(computed) + 0.5);
    if (std::isinf(share.seconds) || each <= 0) return share.rows;
    const double rows =
        std::min(RowsIn(std::max(0.0, share.seconds), each, key), static_cast<double>(share.rows));
    return std::min(share.rows, std::max(share.least, static_cast<int64_t>(rows)));
  }

  // Rows of prompt i behind `computed` ones, at most `rows`, up to a picture that may not begin.
  int64_t BeginPictures(size_t i, int64_t computed, int64_t rows) {
    const auto starts = StartsWithin(running_[i].picture_starts, computed, rows);
    const auto count = static_cast<int64_t>(starts.size());
    const int64_t begun = std::min(count, pictures_);
    pictures_ -= begun;
    return begun < count ? starts[static_cast<size_t>(begun)] - computed : rows;
  }

  // More rows of prompt i, out of `part` of `share`, from which they are taken.
  void GivePrompt(size_t i, const Share& part, Share& share) {
    const int64_t before = plan_.rows[i], computed = running_[i].computed + before;
    const int64_t given =
        BeginPictures(i, computed, std::min(Fitting(part, computed), running_[i].left - before));
    plan_.rows[i] += given;
    share.rows -= given;
    share.seconds -= Cost(computed, given);
    share.least = std::max<int64_t>(0, share.least - given);
  }

  void PlanPrompts() {
    std::vector<size_t> prompts;
    for (const size_t i : order_) {
      if (!running_[i].decodes && !plan_.preempted[i]) prompts.push_back(i);
    }
    if (prompts.empty()) return;
    Share share = {limits_.prompt_rows, limits_.prompt_seconds, limits_.least_rows};
    GivePrompt(prompts[0], prompts.size() == 1 ? share : share.Half(), share);
    std::stable_sort(prompts.begin(), prompts.end(), [&](size_t a, size_t b) {
      if (running_[a].priority != running_[b].priority) {
        return running_[a].priority > running_[b].priority;
      }
      return running_[a].left < running_[b].left;
    });
    for (const size_t i : prompts) GivePrompt(i, share, share);
  }

  std::span<const SequenceView> running_;
  const std::function<int64_t(size_t)>& regained_;
  const StepLimits& limits_;
  int64_t available_;
  int64_t pictures_;           // that may still begin
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

std::span<const int64_t> StartsWithin(std::span<const int64_t> picture_starts, int64_t computed,
                                      int64_t rows) {
  const auto first = std::lower_bound(picture_starts.begin(), picture_starts.end(), computed);
  const auto last = std::lower_bound(first, picture_starts.end(), computed + rows);
  return {first, last};
}

StepPlan PlanStep(std::span<const SequenceView> running, const StepLimits& limits,
                  const std::function<int64_t(size_t)>& regained) {
  return Planner(running, limits, regained).Plan();
}

StepLimits LimitPrompts(const StepCost& cost, const StepWork& decoding, int64_t most_rows,
                        double slowdown) {
  StepLimits limits = {.prompt_rows = most_rows};
  if (decoding.decode_rows == 0) return limits;
  limits.least_rows = std::min(kLeastRows, most_rows);
  limits.pictures = 1;
  const int64_t trusted = std::max(cost.most_rows(), kLeastRows) * kTrustedGrowth;
  limits.prompt_rows =
      std::clamp(trusted - decoding.decode_rows, limits.least_rows, limits.prompt_rows);
  limits.prompt_seconds = (slowdown - 1) * cost.Seconds(decoding);
  limits.row_seconds = cost.row_seconds();
  limits.key_seconds = cost.key_seconds();
  return limits;
}

}  // namespace llava
