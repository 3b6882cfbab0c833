#pragma once

// Right or wrong: answers are compared by their key words, so other words around them do not
// matter.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/data/scenes/wording.h"

namespace llava {

// Things an answer names, with the number word before each (1 if there is none), sorted:
// "Two apples and a lion." gives {{"apple", 2}, {"lion", 1}}. What is named twice is added up: "a
// lion on the left and a lion on the right" are two.
std::vector<std::pair<std::string, int>> NamedThings(std::string_view answer);

// The key words of an answer: names in the singular, numbers, colours, groups, places, yes, no,
// none and the like; sorted, except for kDetail, where order is part of the answer. For kWhat and
// kBrief the named things, as "apple 2".
std::vector<std::string> KeyWords(QuestionType type, std::string_view answer);

// Whether both answers have the same key words.
bool SameAnswer(QuestionType type, std::string_view expected, std::string_view given);

}  // namespace llava
