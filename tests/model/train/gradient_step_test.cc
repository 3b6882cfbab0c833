#include "model/train/gradient_step.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

// The loss of micro-batch m of step s is (100 s + m) w; every replica has a w of its own.
class Counting : public TrainingTask {
 public:
  explicit Counting(int64_t replicas) {
    for (int64_t i = 0; i < replicas; ++i) weights.push_back(at::ones({1}).requires_grad_());
  }
  std::string kind() const override { return "counting"; }
  int64_t total_steps() const override { return 3; }
  int64_t num_replicas() const override { return static_cast<int64_t>(weights.size()); }
  std::vector<ParameterGroup> groups() override { return {}; }
  MicroBatch Forward(int64_t step, int64_t micro) override {
    {
      std::unique_lock lock(mutex);
      threads.insert(std::this_thread::get_id());
      kernel_threads.insert(at::get_num_threads());
      most = std::max(most, ++inside);
      met.notify_all();
      // Turns that are computed one after the other would not meet.
      if (meet > 1)
        all_met &= met.wait_for(lock, std::chrono::minutes(1), [&] { return most >= meet; });
      --inside;
    }
    if (micro == bad) throw std::runtime_error("micro-batch " + std::to_string(micro));
    MicroBatch batch;
    batch.loss = weights[micro % num_replicas()][0] * static_cast<double>(100 * step + micro);
    batch.samples = 1;
    batch.tokens = 10 + micro;
    batch.trained_tokens = micro;
    batch.figures = {{"micro", static_cast<double>(micro)}};
    batch.origin = "m" + std::to_string(micro);
    batch.waited_seconds = static_cast<double>(micro);
    return batch;
  }
  nlohmann::ordered_json Check(std::FILE*) override { return {}; }
  Figures Evaluate() override { return {}; }
  std::filesystem::path Publish(const std::filesystem::path& root, const std::string&,
                                const nlohmann::ordered_json&) override {
    return root;
  }

  double Gradient() const {
    double sum = 0;
    for (const at::Tensor& weight : weights) {
      if (weight.grad().defined()) sum += weight.grad().item<double>();
    }
    return sum;
  }

  std::vector<at::Tensor> weights;
  int64_t bad = -1, meet = 1;
  bool all_met = true;
  std::mutex mutex;
  std::condition_variable met;
  int64_t inside = 0, most = 0;
  std::set<std::thread::id> threads;
  std::multiset<int> kernel_threads;
};

StepSums StepOf(GradientStep& passes, int64_t step) {
  StepSums sums;
  for (int64_t turn = 0; turn < passes.num_turns(); ++turn) passes.Turn(step, turn, sums);
  return sums;
}

// Each prepares what it will compute, one after the other, and nothing else.
TEST(ReplicaSharesTest, EveryReplicaHasItsOwnInARow) {
  for (const int64_t accumulation : {3, 5, 7, 8}) {
    for (const int64_t replicas : {1, 2, 3}) {
      const ReplicaShares shares{accumulation, replicas};
      std::vector<int64_t> next(replicas);
      for (int64_t step = 0; step < 3; ++step) {
        for (int64_t micro = 0; micro < accumulation; ++micro) {
          const int64_t replica = micro % replicas, number = shares.NumberOf(step, micro);
          EXPECT_EQ(number, next[replica]++);
          EXPECT_EQ(shares.MicroBatch(replica, number), step * accumulation + micro);
        }
      }
    }
  }
}

TEST(GradientStepTest, TheSumsAreThoseOfOneReplica) {
  for (const int64_t replicas : {1, 2, 3, 4, 5}) {
    Counting task(replicas);
    GradientStep passes(task, 5);
    EXPECT_EQ(passes.num_turns(), (5 + replicas - 1) / replicas);
    for (const int64_t step : {0, 2}) {
      for (at::Tensor& weight : task.weights) weight.mutable_grad() = at::Tensor();
      const StepSums sums = StepOf(passes, step);
      const double mean = 100.0 * static_cast<double>(step) + 2;
      EXPECT_NEAR(task.Gradient(), mean, 1e-4) << replicas;
      EXPECT_NEAR(sums.loss, mean, 1e-4);
      EXPECT_EQ(sums.samples, 5);
      EXPECT_EQ(sums.tokens, 60);
      EXPECT_EQ(sums.trained_tokens, 10);
      EXPECT_DOUBLE_EQ(sums.figures.at("micro"), 2);
      EXPECT_EQ(sums.origin, "m0; m1; m2; m3; m4");
    }
    EXPECT_EQ(static_cast<int64_t>(task.threads.size()), replicas) << "a thread for each, kept";
  }
}

TEST(GradientStepTest, ReplicasWorkSideBySide) {
  Counting task(3);
  task.meet = 3;
  GradientStep passes(task, 3);
  const StepSums sums = StepOf(passes, 0);
  EXPECT_TRUE(task.all_met);
  EXPECT_EQ(sums.waited_seconds, 2) << "the longest wait, as they waited together";
}

TEST(GradientStepTest, TheirKernelsHaveAsManyThreadsAsTheCallers) {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  Counting task(2);
  GradientStep passes(task, 2);
  std::thread([] { at::set_num_threads(1); }).join();  // as those that prepare data do
  StepOf(passes, 0);
  at::set_num_threads(before);
  EXPECT_EQ(task.kernel_threads, (std::multiset<int>{3, 3}));
}

TEST(GradientStepTest, AFaultOfAReplicaEndsTheTurnAndTheNextOneIsWhole) {
  for (const int64_t bad : {0, 1, 2}) {
    Counting task(3);
    task.bad = bad;
    GradientStep passes(task, 3);
    try {
      StepOf(passes, 0);
      ADD_FAILURE() << "went on";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()), "micro-batch " + std::to_string(bad));
    }
    EXPECT_EQ(task.inside, 0) << "nobody is still at work";
    task.bad = -1;
    for (at::Tensor& weight : task.weights) weight.mutable_grad() = at::Tensor();
    EXPECT_EQ(StepOf(passes, 1).samples, 3);
    EXPECT_NEAR(task.Gradient(), 101, 1e-4);
  }
}

}  // namespace
}  // namespace llava
