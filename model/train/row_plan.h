#pragma once

// Which records are trained when.

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "model/data/instructions/record_survey.h"

namespace llava {

enum class RowOrder {
  kShuffled,  // anew in each epoch
  kAsData,
  kByLength,  // GroupByModalityAndLength
};

struct RowPlanOptions {
  // Records of the same pictures that stand together in the data share a row, as long as it stays
  // within `row_tokens` (roughly: as if they shared no text).
  bool pack = false;
  int64_t row_tokens = 2048;
  RowOrder order = RowOrder::kShuffled;
  // kByLength: a row's tokens instead of its words, where pictures differ in theirs.
  bool by_tokens = false;
  int64_t batch = 1, accumulation = 1;  // rows of a micro-batch, micro-batches of a step: kByLength
  uint64_t seed = 42;
};

// An endless sequence of rows, epoch after epoch: a pure function of survey and options.
// Thread-safe.
class RowPlan {
 public:
  RowPlan(const RecordSurvey& survey, const RowPlanOptions& options);

  int64_t rows() const { return static_cast<int64_t>(begins_.size()) - 1; }  // of an epoch
  // The records of a row: one, or several of the same pictures.
  std::span<const int64_t> Records(int64_t row) const;
  // About as many as go through the network for it: those that are shared in a packed row once.
  int64_t Tokens(int64_t row) const { return tokens_[row]; }
  struct Place {
    uint64_t epoch;
    int64_t row;
  };
  Place At(int64_t position) const;

 private:
  std::vector<int64_t> OrderOf(uint64_t epoch) const;

  RowPlanOptions options_;
  std::vector<int64_t> records_, begins_;
  std::vector<int64_t> tokens_;   // of rows
  std::vector<int64_t> lengths_;  // of rows, in words or tokens; negative without pictures
  mutable std::mutex mutex_;      // guards what follows
  // The orders of the epochs asked for last: threads stand on both sides of an epoch's end.
  mutable std::vector<std::pair<uint64_t, std::shared_ptr<const std::vector<int64_t>>>> orders_;
};

}  // namespace llava
