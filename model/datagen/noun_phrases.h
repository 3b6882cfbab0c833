#pragma once

// The things a caption names, found by rules: no model, equal texts give equal phrases everywhere.

#include <string>
#include <string_view>
#include <vector>

namespace llava {

// The base noun phrases of an English caption, in order, in lower case with single spaces: a noun
// with the adjectives, participles and nouns in front of it; without articles, possessive pronouns,
// numbers and words of quantity at the beginning. "A man with two small dogs" has "man" and "small
// dogs". Words are told apart by lexicon.txt, by their endings and by their neighbours.
// Thread-safe.
std::vector<std::string> NounPhrases(std::string_view caption);

// lexicon.txt: sections of words.
std::string_view LexiconText();

}  // namespace llava
