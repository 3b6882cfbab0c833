#pragma once

// What differs between the kinds of training: what is trained, on what, and what comes out. The
// Trainer owns the rest: order, optimizer, saving, resuming, logs.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "model/train/recipe.h"

namespace llava {

// Parameters with settings of their own. Leaves in float32 that require gradients; the names are
// unique over all groups and stay the same from run to run.
struct ParameterGroup {
  std::string name;  // "projector", "decoder": in logs
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  double learning_rate = 0;  // peak
  double weight_decay = 0;
};

// The outcome of one micro-batch.
struct MicroBatch {
  at::Tensor loss;             // scalar, float32, differentiable: the mean over trained tokens
  int64_t samples = 0;         // pictures, records or rows
  int64_t tokens = 0;          // that went through the network
  int64_t trained_tokens = 0;  // with loss (0 where the word means nothing)
  std::vector<std::pair<std::string, double>> figures;  // more for the log, averaged over a step
  std::string origin;         // which samples, for messages ("stage2.json records 17, 512")
  double waited_seconds = 0;  // for data
};

using Figures = std::vector<std::pair<std::string, double>>;

// Micro-batches a step.
int64_t ReadAccumulation(Recipe& recipe);

// What all kinds of training read from the recipe, and where the run is.
struct TaskSettings {
  int64_t accumulation = 1;  // micro-batches a step
  uint64_t seed = 42;
  std::vector<at::Device> devices = {at::kCPU};  // each computes micro-batches; at least one
  bool offload = false;  // masters and optimizer are kept and stepped in the host's memory
  at::ScalarType compute_dtype = at::kFloat;  // bfloat16 with float32 masters, or float32
  bool gradient_checkpointing = false;        // recompute each decoder layer in the backward pass
  int64_t loader_threads = 1;
  bool skip_bad = false;  // leave bad records out, counted, instead of refusing the data
  std::filesystem::path run_folder = {};  // that it may go on in; empty: none

  at::Device device() const { return devices.front(); }
  // Where the masters live: on `devices`, unless the host has them.
  std::vector<at::Device> homes() const {
    return offload ? std::vector<at::Device>{at::kCPU} : devices;
  }
  // Throws std::invalid_argument if there are several devices, or masters away from the only one:
  // for a `kind` of training that knows neither.
  void RequireOneDevice(const std::string& kind) const;
  // Throws std::invalid_argument for settings that cannot be, a device that is not there among
  // them.
  static TaskSettings From(Recipe& recipe);
};

// One thread, but for Forward.
class TrainingTask {
 public:
  virtual ~TrainingTask() = default;

  virtual std::string kind() const = 0;  // the subcommand
  // Optimizer steps of the whole run.
  virtual int64_t total_steps() const = 0;
  virtual std::vector<ParameterGroup> groups() = 0;

  // Once, before the first Forward of a run: may write files of its own into the run's folder,
  // which is locked, and read them if the run `resumes`. May change total_steps(). Throws
  // std::invalid_argument if the run began with something else. `progress`: for messages.
  virtual void Begin(const std::filesystem::path& run_folder, bool resumes, std::FILE* progress) {}

  // Forward pass of micro-batch `micro` of step `step`: a pure function of these numbers, the
  // recipe and the parameters, so that a resumed run repeats it. Both count from 0. So many
  // successive micro-batches as there are replicas may be computed, backward pass included, at the
  // same time, each on a thread of its own.
  virtual MicroBatch Forward(int64_t step, int64_t micro) = 0;
  virtual int64_t num_replicas() const { return 1; }

  // The step whose largest micro-batch is the largest of the run: it decides over memory. 0 where
  // all are alike.
  virtual int64_t HeaviestStep() { return 0; }

  // Looks at all data without training: counts, tokens, what was left out and why, as an object for
  // people and programs. Throws std::runtime_error naming file and record of what is wrong.
  // `progress`: for a bar.
  virtual nlohmann::ordered_json Check(std::FILE* progress) = 0;

  // Figures on held-out data, without gradients; the same data every time. Throws
  // StopRequest::Came soon after a stop is requested.
  virtual Figures Evaluate() = 0;

  // Writes what was trained into the model repository `root` as the next version of `name`; returns
  // its folder. `recipe`: how it was made.
  virtual std::filesystem::path Publish(const std::filesystem::path& root, const std::string& name,
                                        const nlohmann::ordered_json& recipe) = 0;
};

}  // namespace llava
