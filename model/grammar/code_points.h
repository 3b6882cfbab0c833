#pragma once

// Characters as bytes: the edges of an automaton that read one code point of a set in UTF-8.

#include <cstdint>
#include <utility>
#include <vector>

#include "model/grammar/automaton.h"

namespace llava::grammar {

// Ranges of code points, both ends included.
using CodePoints = std::vector<std::pair<char32_t, char32_t>>;

// In order, without overlaps, without surrogates and what is above U+10FFFF.
CodePoints Normalized(CodePoints set);
// All others.
CodePoints Complement(const CodePoints& set);

// Edges between two states that read one code point of the set in UTF-8.
void AddCodePoints(AutomatonBuilder& builder, int32_t from, const CodePoints& set, int32_t to);

}  // namespace llava::grammar
