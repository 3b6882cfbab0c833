#pragma once

// What the tests of model/text share: the fixtures' files, and a small random source of odd texts.

#include <random>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/text/tokenizer.h"

namespace llava {

// A file of the fixtures' `expected` folder.
nlohmann::json ExpectedJson(const std::string& name);
// The fixtures' tokenizer.model under the given rule.
Tokenizer FixtureTokenizer(bool legacy);

// A text without NUL and line breaks: letters, runs of white space, several scripts, emoji,
// combining marks, compatibility characters, "▁", broken UTF-8 (if `broken`), and now and then one
// of `extra`.
std::string OddText(std::mt19937& random, bool broken, const std::vector<std::string>& extra = {});

}  // namespace llava
