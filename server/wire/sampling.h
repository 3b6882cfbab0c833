#pragma once

// Sampling parameters as they travel: ranges and defaults, the same in gateway and LLM service.

#include "absl/status/status.h"
#include "llava/v1/types.pb.h"

namespace llava {

// INVALID_ARGUMENT naming the field, its value and the allowed range (types.proto); NaN is never in
// range.
absl::Status CheckSampling(const v1::SamplingParams& params);

// A constraint that asks for something.
bool HasConstraint(const v1::SamplingParams& params);

// `params` with every unset field (empty list) taken from `defaults`.
v1::SamplingParams WithDefaults(v1::SamplingParams params, const v1::SamplingParams& defaults);

}  // namespace llava
