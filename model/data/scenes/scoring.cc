#include "model/data/scenes/scoring.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "model/text/utf8.h"

namespace llava {
namespace {

// Whether a character beyond ASCII is part of a word. Key words are ASCII: all that matters is that
// typographic punctuation and emoji end a word and letters do not.
bool IsForeignLetter(char32_t c) {
  if (c < 0xC0) return c == 0xAA || c == 0xB5 || c == 0xBA;
  const bool symbol = c == 0xD7 || c == 0xF7 ||       // times, division
                      (c >= 0x2000 && c < 0x2C00) ||  // punctuation, arrows, shapes
                      (c >= 0x3000 && c < 0x3005) ||  // CJK punctuation,
                      (c >= 0x3008 && c < 0x3031) ||  // brackets
                      (c >= 0xFE00 && c < 0xFE70) ||  // variation selectors, forms
                      (c >= 0xFF00 && c < 0xFF21) || c == 0xFFFD || (c >= 0x1F000 && c < 0x20000);
  return !symbol;
}

// Lower-case words, names in the singular.
std::vector<std::string> Words(std::string_view text) {
  static const auto singular = [] {
    std::unordered_map<std::string, std::string> result;
    for (const Category& category : Categories()) result.emplace(category.plural, category.name);
    return result;
  }();
  std::vector<std::string> words;
  std::string word;
  const auto end_word = [&] {
    if (word.empty()) return;
    const auto found = singular.find(word);
    words.push_back(found == singular.end() ? word : found->second);
    word.clear();
  };
  while (!text.empty()) {
    const Utf8Char character = ReadUtf8(text);
    const char32_t c = character.state == Utf8Char::State::kWhole ? character.value : U' ';
    if (c >= U'A' && c <= U'Z') {
      word += static_cast<char>(c - U'A' + U'a');
    } else if ((c >= U'a' && c <= U'z') || (c >= 0x80 && IsForeignLetter(c))) {
      word += text.substr(0, character.size);
    } else {
      end_word();
    }
    text.remove_prefix(character.size);
  }
  end_word();
  return words;
}

bool IsKeyWord(const std::string& word) {
  static const auto key_words = [] {
    std::unordered_set<std::string> result = {"left",   "right", "top",    "bottom",
                                              "center", "above", "below",  "yes",
                                              "no",     "none",  "bigger", "smaller"};
    for (const Category& category : Categories()) {
      result.insert({category.name, category.colour, category.group});
    }
    for (const Background& background : kBackgrounds) result.emplace(background.name);
    for (int number = 1; number < kNumberWords; ++number) result.emplace(NumberWord(number));
    return result;
  }();
  return key_words.contains(word);
}

}  // namespace

std::vector<std::pair<std::string, int>> NamedThings(std::string_view answer) {
  std::vector<std::pair<std::string, int>> things;
  int number = 1;
  for (std::string& word : Words(answer)) {
    for (int n = 0; n < kNumberWords; ++n) {
      if (word == NumberWord(n)) number = n;
    }
    if (!FindCategory(word)) continue;
    const auto named = std::find_if(things.begin(), things.end(),
                                    [&](const auto& thing) { return thing.first == word; });
    if (named == things.end()) {
      things.emplace_back(std::move(word), number);
    } else {
      named->second += number;  // "a lion on the left and a lion on the right"
    }
    number = 1;
  }
  std::sort(things.begin(), things.end());
  return things;
}

std::vector<std::string> KeyWords(QuestionType type, std::string_view answer) {
  std::vector<std::string> key;
  if (type == QuestionType::kWhat || type == QuestionType::kBrief) {
    for (const auto& [name, number] : NamedThings(answer)) {
      key.push_back(name + " " + std::to_string(number));
    }
    return key;
  }
  for (std::string& word : Words(answer)) {
    if (IsKeyWord(word)) key.push_back(std::move(word));
  }
  if (type != QuestionType::kDetail) std::sort(key.begin(), key.end());
  return key;
}

bool SameAnswer(QuestionType type, std::string_view expected, std::string_view given) {
  return KeyWords(type, expected) == KeyWords(type, given);
}

}  // namespace llava
