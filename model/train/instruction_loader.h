#pragma once

// Micro-batches of instruction data, ready for the network but for the tokens of the pictures.

#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "model/data/instructions/instruction_data.h"
#include "model/data/instructions/sample_encoder.h"
#include "model/train/frozen_tower.h"
#include "model/train/instruction_set.h"
#include "model/train/row_plan.h"
#include "model/train/training_rows.h"

namespace llava {

struct InstructionBatch {
  std::vector<TrainingRow> rows;
  int64_t samples = 0;
  int64_t tokens = 0;  // that go through the network: shared ones once
  int64_t trained_tokens = 0;
  int64_t left_out = 0;   // records of the plan that cannot be used
  int64_t lost_rows = 0;  // of which nothing is left, for records that turned out bad only now
  std::string complaint;  // about the last of those
  std::string origin;     // "stage2.json records 17, 512"
};

// All referred to must outlive it. Thread-safe.
class InstructionLoader {
 public:
  // `num_rows`: of the whole run. `skip_bad`: a record that turns out bad (its picture cannot be
  // decoded, or is not there any more) is left out; else making its micro-batch throws.
  InstructionLoader(const InstructionSet& set, const SampleEncoder& encoder,
                    const FrozenTower& tower, int64_t batch_size, int64_t num_rows, bool skip_bad);

  int64_t num_batches() const { return (num_rows_ + batch_size_ - 1) / batch_size_; }
  // Micro-batch `number`, counted over the whole run: a pure function of it. Without samples if all
  // its records are left out. Throws BadRecord naming the record, and std::runtime_error where it
  // is not the records that are bad: the disk does not answer, the folder of the pictures is lost,
  // or so many pictures have vanished since the run started that it may be.
  InstructionBatch Make(int64_t number) const;
  // The same, but one without samples gives place to the next one that has some. Throws
  // std::runtime_error also if too many rows in succession turn out bad.
  InstructionBatch MakeFull(int64_t number) const;

 private:
  void AddRow(const RowPlan::Place& place, InstructionBatch& batch,
              std::vector<int64_t>& records) const;
  // Throws if there are too many of them.
  void NoteVanished(const std::string& what) const;

  const InstructionSet& set_;
  const SampleEncoder& encoder_;
  const FrozenTower& tower_;
  const int64_t batch_size_, num_rows_;
  const bool skip_bad_;
  mutable std::mutex mutex_;                // guards what follows
  mutable std::set<std::string> vanished_;  // pictures, by what is said about them
};

}  // namespace llava
