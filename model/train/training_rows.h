#pragma once

// Encoded samples as rows of a batch.

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/data/instructions/sample_encoder.h"
#include "model/llava/llava.h"
#include "model/llava/tower_features.h"

namespace llava {

// Owns what a LabelledSample points to.
struct TrainingRow {
  std::vector<int32_t> input_ids;
  std::vector<int64_t> labels;
  std::vector<at::Tensor> features;
  std::vector<Resolution> sizes;
  int64_t shared = 0;
  std::vector<int64_t> branches;

  LabelledSample View() const { return {input_ids, labels, features, shared, branches, sizes}; }
};

// Samples of the same pictures, in as few rows as possible: those that are equal up to just behind
// the last picture share that beginning. The loss of the rows is the loss of the samples.
// A sample uses as many of `pictures` as it has marks.
std::vector<TrainingRow> MakeRows(std::vector<EncodedSample> samples,
                                  const std::vector<PictureFeatures>& pictures);

}  // namespace llava
