#pragma once

// The tower as a model of the Open Inference Protocol: its tensors, and requests checked and taken
// apart. No gRPC calls here. Which tensors there are: docs/vision.md.

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "inference/open_inference.pb.h"
#include "server/vision/engine.h"

namespace llava {

// A checked ModelInferRequest.
struct InferPlan {
  enum class Output { kFloat32, kBFloat16 };

  std::string input;            // name of the tensor that was given
  std::vector<EncodeJob> jobs;  // one a picture; without calls
  std::vector<Output> outputs;  // in the order asked for
  std::optional<std::chrono::microseconds> timeout;
};

// INVALID_ARGUMENT names the input, the picture's index in the batch and what is wrong: names,
// types, shapes and sizes that are not the model's, more than engine.max_batch pictures, values
// that are not finite, parameters that are not known.
absl::StatusOr<InferPlan> PlanInference(const inference::ModelInferRequest& request,
                                        const TowerInfo& tower,
                                        const VisionEngine::Options& engine);

// The outputs of a plan from the features of its jobs, raw.
void WriteOutputs(const InferPlan& plan, std::span<const std::shared_ptr<const Features>> features,
                  inference::ModelInferResponse* response);

// Names, types and shapes of the tensors.
void DescribeTensors(const TowerInfo& tower, inference::ModelMetadataResponse* metadata);
// All but the name.
void DescribeConfig(const TowerInfo& tower, const VisionEngine::Options& engine, int workers,
                    inference::ModelConfig* config);

}  // namespace llava
