#pragma once

// The training loop: accumulation, clipping, schedule, saving and resuming bit for bit, logs.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>

#include "model/train/recipe.h"
#include "model/train/training_task.h"

namespace llava {

// Common to all kinds of training; read from the recipe.
struct TrainerSettings {
  int64_t accumulation = 1;    // micro-batches a step; their mean losses are averaged
  double clip_norm = 1.0;      // 0: no clipping
  double warmup_ratio = 0.03;  // of the steps, rounded up
  double final_rate = 0;       // where the cosine ends, as a share of the peak
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  int64_t save_every = 500;  // steps; 0: only at the end and on a signal
  int64_t keep_states = 2;
  int64_t evaluate_every = 500;  // steps; 0: only at the end
  int64_t max_bad_steps = 10;    // in a row with a loss or gradient that is not finite
  static TrainerSettings From(Recipe& recipe);
};

// What a run tells those who watch it. Called on the training thread after every step.
struct StepReport {
  int64_t step = 0, total_steps = 0;  // steps done
  double loss = 0, gradient_norm = 0, learning_rate = 0;
  int64_t samples = 0, tokens = 0, trained_tokens = 0;
  double seconds = 0, waited_seconds = 0;
  bool skipped = false;  // not finite: the parameters stayed
  Figures figures;
  Figures evaluation;  // after an evaluation
};

struct TrainerOptions {
  std::filesystem::path run_folder;
  std::FILE* progress = stderr;
  std::function<void(const StepReport&)> on_step;
};

enum class TrainingOutcome {
  kFinished,
  kStopped,  // StopRequest: the state is saved, the same call goes on from it
};

// Trains `task` to its end in `run_folder`:
//   recipe.json               the resolved recipe; a folder of another recipe is refused
//   metrics.jsonl             one line a step, evaluations among them
//   what TrainingTask::Begin writes: start.json, data-report.json, plan.safetensors
//   state-<step>.safetensors  parameters and optimizer state after that step
// Goes on from the newest whole state if there is one: in float32 on the same number of threads
// every later loss is the same bit for bit. Throws std::invalid_argument for a wrong folder or
// recipe, std::runtime_error when nothing more can be written (older states stay whole) or the loss
// stays not finite, and what the task throws, after saving what was trained up to then.
TrainingOutcome Train(TrainingTask& task, const Recipe& recipe, const TrainerSettings& settings,
                      const TrainerOptions& options);

}  // namespace llava
