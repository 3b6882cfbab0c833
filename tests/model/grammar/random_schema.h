#pragma once

// Random schemas with documents that they accept, tokens to write them with, and walks under a
// constraint.

#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "model/grammar/matcher.h"

namespace llava {

using RandomSource = std::mt19937;

// Of supported keywords, at most `depth` levels.
nlohmann::ordered_json RandomSchema(RandomSource& random, int depth);
// Valid for it, members in the order of the schema.
nlohmann::ordered_json RandomDocument(RandomSource& random, const nlohmann::ordered_json& schema,
                                      int depth = 0);

// All bytes, and many texts of several: of JSON, of words, in several scripts, parts of characters.
// Some tokens are special (empty), some stand twice.
// `drops_space`: those of several bytes do at the beginning, and " " as a piece of its own.
std::shared_ptr<const grammar::Vocabulary> JsonVocabulary(bool drops_space = false);

// What there is below, as ids.
std::vector<int32_t> AllowedTokens(grammar::Matcher& matcher,
                                   const grammar::Vocabulary& vocabulary);

// Draws allowed tokens until the text is finished, or, once it may end, at random; after
// `patience` tokens the ones that bring it to an end first. The text.
std::string RandomWalk(RandomSource& random, grammar::Matcher& matcher,
                       const grammar::Vocabulary& vocabulary, int patience);

}  // namespace llava
