#pragma once

// The passes of one step: forward and backward through all of its micro-batches.

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "model/train/training_task.h"

namespace llava {

// Which replica has which micro-batches: of each step every num_replicas-th.
struct ReplicaShares {
  int64_t accumulation = 1, num_replicas = 1;

  // Of a step, for this replica.
  int64_t Count(int64_t replica) const { return (accumulation - 1 - replica) / num_replicas + 1; }
  // The how many-th of its replica a micro-batch is, counted over the whole run; and the other way
  // round, with micro-batches counted over the whole run.
  int64_t NumberOf(int64_t step, int64_t micro) const {
    return step * Count(micro % num_replicas) + micro / num_replicas;
  }
  int64_t MicroBatch(int64_t replica, int64_t number) const {
    const int64_t count = Count(replica);
    return number / count * accumulation + number % count * num_replicas + replica;
  }
};

// Of all micro-batches of a step.
struct StepSums {
  double loss = 0;  // mean
  int64_t samples = 0, tokens = 0, trained_tokens = 0;
  double waited_seconds = 0;              // for data; of replicas side by side the longest
  std::map<std::string, double> figures;  // means
  std::string origin;
};

// Computes on all replicas of a task, each on a thread of its own that lives as long as this. One
// thread calls.
class GradientStep {
 public:
  // `accumulation`: micro-batches a step.
  GradientStep(TrainingTask& task, int64_t accumulation);
  ~GradientStep();
  GradientStep(const GradientStep&) = delete;
  GradientStep& operator=(const GradientStep&) = delete;

  // In how many turns the micro-batches of a step are computed.
  int64_t num_turns() const { return ReplicaShares{accumulation_, num_replicas_}.Count(0); }
  // Adds the gradients of the mean loss of turn `turn` of a step to those of the task's parameters,
  // and what else there is to `sums`. Throws what the task does, when all replicas have ended.
  void Turn(int64_t step, int64_t turn, StepSums& sums);

 private:
  void Stop();
  void Work(int64_t replica);
  void Compute(int64_t replica);

  TrainingTask& task_;
  const int64_t accumulation_, num_replicas_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_; read without it by those whose turn it is.
  int64_t step_ = 0, turn_ = 0;
  int64_t started_ = 0, working_ = 0;  // turns since the beginning; replicas at work
  bool stopping_ = false;
  struct Outcome {
    MicroBatch batch = {};
    double loss = 0;
    std::exception_ptr error = nullptr;
  };
  std::vector<Outcome> outcomes_;     // by replica
  std::vector<std::thread> threads_;  // of all replicas but the first, which is the caller's
};

}  // namespace llava
