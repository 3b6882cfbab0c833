#pragma once

// Self-tests of published versions: what the trainer's own arithmetic made of one example, and
// whether a loaded model still does.

#include <cstdint>
#include <functional>
#include <span>

#include <ATen/core/Tensor.h>

#include "model/checkpoint/checkpoint.h"
#include "model/llava/llava.h"
#include "model/llava/serving_model.h"
#include "model/nn/clip.h"
#include "model/nn/packed_clip.h"

namespace llava {

// A language model reads `ids` and tells the log-probabilities of those that have a label (what a
// user says is not the model's to foresee), each after the true ids before it. Stored: "ids",
// "labels", "features" [pictures, P, Dv] if there are any (in the anyres mode [pictures, (1 +
// tiles) P, Dv] with the `sizes` of the pictures, [pictures, 2], width first; where they differ in
// their tiles [all rows, Dv] with the numbers of "rows", [pictures]), and "log_probabilities",
// computed in float32. Tolerances are of the largest difference;
// those of 16 bits come from measuring bfloat16 here, those of int8 and int4 from packing for the
// CPU, where the shape can be packed and the weights lie in the CPU's memory. Throws as
// Llava::Embed and Expand, std::invalid_argument if no id but the first is labelled.
SelfTest MakeSelfTest(const LanguageCheckpoint& checkpoint, std::span<const int32_t> ids,
                      std::span<const int64_t> labels, const std::vector<at::Tensor>& features,
                      at::Device device = at::kCPU, const std::vector<Resolution>& sizes = {});
// Of a model that is only there as it is served (packed): what it says itself is the reference, and
// there is a tolerance for its own arithmetic alone.
SelfTest MakeSelfTest(ServingModel& model, std::span<const int32_t> ids,
                      std::span<const int64_t> labels, const std::vector<at::Tensor>& features);
// The largest difference of a log-probability. Throws std::runtime_error telling it and the
// tolerance if it is too large or not a number, or if the test cannot be read.
double CheckSelfTest(const Llava& model, const SelfTest& test);
// The same of a model as it is served. Integer weights for which no tolerance is stored must only
// be free of gross errors. Uses blocks of keys and values: for a model that computes nothing yet.
// `rows` at once (0: all), each time within `piece`, if there is one.
double CheckSelfTest(ServingModel& model, const SelfTest& test, int64_t rows = 0,
                     const std::function<void(const std::function<void()>&)>& piece = {});

// A tower sees `picture` [S, S, 3] uint8, fitted to its input. Stored: "picture", "layer" and
// "features" [P + 1, Dv], the hidden state of that layer in float32. Tolerances are of 1 - the
// smallest cosine of a row.
SelfTest MakeSelfTest(const TowerCheckpoint& checkpoint, const at::Tensor& picture, int64_t layer,
                      at::Device device = at::kCPU);
// 1 - the smallest cosine of a row. Throws as above.
double CheckSelfTest(const ClipTower& tower, const SelfTest& test);
double CheckSelfTest(PackedClipTower& tower, const SelfTest& test);

}  // namespace llava
