#pragma once

// Constraints as they travel.

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llava/v1/types.pb.h"
#include "model/grammar/automaton.h"

namespace llava {

// What the constraint means; null: nothing (FreeText, or it is not set). INVALID_ARGUMENT naming
// the field and, of a schema, the keyword and its place. Bounded work, tens of milliseconds at
// most.
absl::StatusOr<std::shared_ptr<const grammar::Automaton>> CompileConstraint(
    const v1::OutputConstraint& constraint);

// The same without the result, for whoever only takes requests.
absl::Status CheckConstraint(const v1::SamplingParams& params);

}  // namespace llava
