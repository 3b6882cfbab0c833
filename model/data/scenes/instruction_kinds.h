#pragma once

// The paper's three kinds of instruction data, as a set.

#include <span>
#include <string>
#include <vector>

#include "model/data/scenes/wording.h"

namespace llava {

struct InstructionKinds {
  bool conversation = true;  // what the picture shows, and follow-ups about it
  bool detail = true;        // whole descriptions
  bool reasoning = true;     // the picture and a fact about the world, in follow-ups too

  // Throws std::invalid_argument listing the names.
  static InstructionKinds Named(std::span<const std::string> names);
  // "conversation", "detail", "reasoning", in this order: those in the set.
  std::vector<std::string> Names() const;
  // Whether the kind that questions of this type belong to is in the set.
  bool Has(QuestionType type) const;

  bool operator==(const InstructionKinds&) const = default;
};

}  // namespace llava
