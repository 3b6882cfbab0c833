#pragma once

// A tiny model, pictures and instruction data to train on.

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/train/instruction_task.h"
#include "tests/support/temp_folder.h"

namespace llava {

// One record of LLaVA's JSON. `texts`: question, answer, question, ...; `image` empty: none.
std::string RecordJson(const std::string& id, const std::string& image,
                       const std::vector<std::string>& texts);
std::string ArrayJson(const std::vector<std::string>& records);

// Files of a test's own, and tasks of the fixtures' model on them.
class InstructionWorld {
 public:
  InstructionWorld();

  const std::filesystem::path& folder() const { return scratch_.path(); }
  std::filesystem::path model() const;  // tower and language model in one folder
  std::filesystem::path Write(const std::string& name, std::string_view content) const {
    return scratch_.Write(name, content);
  }
  // Eight records about three pictures, two of text alone; several turns.
  std::vector<std::string> records() const;

  // A task on data.json (`records()` unless the test wrote its own); `settings` as "key=value".
  std::unique_ptr<TrainingTask> Make(InstructionStage stage,
                                     const std::vector<std::string>& settings = {},
                                     std::FILE* progress = nullptr) const;
  // What Make tells its progress stream.
  std::string Told(InstructionStage stage, const std::vector<std::string>& settings) const;
  // What Make says when it refuses; empty if it does not.
  std::string Refusal(InstructionStage stage, const std::vector<std::string>& settings) const;

 private:
  TempFolder scratch_;
};

// Gradients of all parameters of a task by name.
std::map<std::string, at::Tensor> Gradients(TrainingTask& task);
// Optimizer steps at a constant rate; the loss of each.
std::vector<double> TrainSteps(TrainingTask& task, int64_t steps, double rate);

}  // namespace llava
