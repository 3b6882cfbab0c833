#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "model/grammar/configurations.h"

namespace llava::grammar {

inline bool Accepts(const std::shared_ptr<const Automaton>& automaton, std::string_view text) {
  Configurations sets(automaton);
  int32_t set = sets.initial();
  for (const char byte : text) set = sets.Step(set, static_cast<uint8_t>(byte));
  return sets.complete(set);
}

}  // namespace llava::grammar
