#pragma once

// Constraints that people write, as automata. All throw GrammarError. Work and memory are bounded,
// whatever the text (kMostParts, kMostSchemaBytes).

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "model/grammar/automaton.h"

namespace llava::grammar {

inline constexpr size_t kMostSchemaBytes = 64u << 10;
// Of an object in a schema.
inline constexpr size_t kMostSchemaMembers = 1000;

// A JSON object with any members.
std::shared_ptr<const Automaton> JsonObject();

// A JSON text that the schema (a JSON text, too) accepts; not every one: json_rules.h and
// docs/constraints.md tell which. A keyword that is not supported is an error that names it and its
// place, unless it is an annotation.
std::shared_ptr<const Automaton> JsonSchema(std::string_view schema);

// A text that the regular expression matches from its beginning to its end (regex.h), and that does
// not begin with a space.
std::shared_ptr<const Automaton> Regex(std::string_view pattern);

// One of the texts, which must not be empty or begin with a space.
std::shared_ptr<const Automaton> Choices(std::span<const std::string> texts);

}  // namespace llava::grammar
