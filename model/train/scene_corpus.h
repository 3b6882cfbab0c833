#pragma once

// Text about scenes for training tokenizers.

#include <cstdint>
#include <string>
#include <vector>

namespace llava {

// Questions, answers, captions and facts as the scenes' data sets have them, one a line, from
// `scenes` scenes; and the words that must be one piece each, often enough to become one. The same
// for equal arguments.
std::vector<std::string> SceneCorpus(int num_categories, int64_t scenes, uint64_t seed);

// The words that maps of words and answers are made of: names and plurals of the categories, their
// colours and groups, places, numbers and the like, those that begin an answer also capitalised.
std::vector<std::string> SceneWords(int num_categories);

}  // namespace llava
