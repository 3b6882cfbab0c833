#include "model/train/gradient_step.h"

#include <algorithm>
#include <utility>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

namespace llava {

GradientStep::GradientStep(TrainingTask& task, int64_t accumulation)
    : task_(task),
      accumulation_(accumulation),
      num_replicas_(task.num_replicas()),
      outcomes_(num_replicas_) {
  // A thread's first use of the number takes what was set last by any other, and loaders set one of
  // their own.
  const int kernel_threads = at::get_num_threads();
  try {
    for (int64_t replica = 1; replica < num_replicas_; ++replica) {
      threads_.emplace_back([this, replica, kernel_threads] {
        at::get_num_threads();
        at::set_num_threads(kernel_threads);
        Work(replica);
      });
    }
  } catch (...) {
    Stop();
    throw;
  }
}

GradientStep::~GradientStep() { Stop(); }

void GradientStep::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void GradientStep::Turn(int64_t step, int64_t turn, StepSums& sums) {
  {
    const std::lock_guard lock(mutex_);
    step_ = step;
    turn_ = turn;
    ++started_;
    working_ = num_replicas_ - 1;
  }
  changed_.notify_all();
  Compute(0);
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return working_ == 0; });
  }
  double waited = 0;
  for (Outcome& outcome : outcomes_) {
    if (outcome.error) {
      const std::exception_ptr error = outcome.error;
      outcomes_.assign(num_replicas_, {});
      std::rethrow_exception(error);
    }
  }
  for (Outcome& outcome : outcomes_) {
    const Outcome done = std::exchange(outcome, {});
    const MicroBatch& batch = done.batch;
    sums.loss += done.loss;
    sums.samples += batch.samples;
    sums.tokens += batch.tokens;
    sums.trained_tokens += batch.trained_tokens;
    waited = std::max(waited, batch.waited_seconds);
    for (const auto& [name, value] : batch.figures) {
      sums.figures[name] += value / static_cast<double>(accumulation_);
    }
    if (!batch.origin.empty()) sums.origin += (sums.origin.empty() ? "" : "; ") + batch.origin;
  }
  sums.waited_seconds += waited;
}

void GradientStep::Work(int64_t replica) {
  std::unique_lock lock(mutex_);
  for (int64_t done = 0;; ++done) {
    changed_.wait(lock, [&] { return stopping_ || started_ > done; });
    if (stopping_) return;
    lock.unlock();
    Compute(replica);
    lock.lock();
    if (--working_ == 0) changed_.notify_all();
  }
}

void GradientStep::Compute(int64_t replica) {
  const int64_t micro = turn_ * num_replicas_ + replica;
  if (micro >= accumulation_) return;
  Outcome& outcome = outcomes_[replica];
  try {
    outcome.batch = task_.Forward(step_, micro);
    const at::Tensor loss = std::exchange(outcome.batch.loss, {});
    (loss / static_cast<double>(accumulation_)).backward();
    outcome.loss = loss.item<double>() / static_cast<double>(accumulation_);
  } catch (...) {
    outcome.error = std::current_exception();
  }
}

}  // namespace llava
