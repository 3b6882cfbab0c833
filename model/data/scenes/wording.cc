#include "model/data/scenes/wording.h"

#include <array>
#include <cctype>
#include <stdexcept>

namespace llava {
namespace {

struct TypeRow {
  QuestionType type;
  std::string_view name;
  std::array<std::string_view, 4> wordings;  // unused ones are empty
};

using enum QuestionType;
constexpr std::array<TypeRow, kNumQuestionTypes> kTypes = {{
    {kWhat,
     "what",
     {"What is in the picture?", "What do you see?", "What can you see in this picture?",
      "What does the picture show?"}},
    {kThis, "this", {"What is this?", "What is it?"}},
    {kBrief, "brief", {}},
    {kDetail,
     "detail",
     {"Describe the picture.", "Describe this picture in detail.", "Tell me about the picture."}},
    {kCount,
     "count",
     {"How many {0} are there?", "How many {0} do you see?", "How many {0} are in the picture?"}},
    {kTotal, "total", {"How many things are there?", "How many things do you see?"}},
    {kGroupCount, "groupcount", {"How many {0} are there?", "How many {0} do you see?"}},
    {kExist, "exist", {"Is there {0} in the picture?", "Do you see {0}?", "Is there {0}?"}},
    {kSide, "side", {"What is {0}?", "What do you see {0}?", "Which thing is {0}?"}},
    {kLeftOf, "leftof", {"What is to the {0} of the {1}?"}},
    {kSideOf,
     "sideof",
     {"Is the {0} to the left or to the right of the {1}?",
      "On which side of the {1} is the {0}?"}},
    {kAbove, "above", {"Is the {0} above or below the {1}?"}},
    {kWhere, "where", {"Where is the {0}?", "Where do you see the {0}?"}},
    {kBigger, "bigger", {"Which is {0}, the {1} or the {2}?"}},
    {kBackground, "bg", {"What color is the background?", "Which color is the background?"}},
    {kKind, "kind", {"What kind of thing is {0}?", "What sort of thing is {0}?"}},
    {kColour, "color", {"What color is {0}?"}},
    {kEat, "eat", {"Can you eat {0}?", "Can I eat {0}?"}},
    {kFly, "fly", {"Can {0} fly?"}},
    {kAlive, "alive", {"Is {0} alive?", "Is {0} a living thing?"}},
    {kWhichEat, "whicheat", {"Which one can you eat?", "Which thing can I eat?"}},
    {kWhichFly, "whichfly", {"Which one can fly?", "Which thing can fly?"}},
    {kSame, "same", {"Are all things of the same kind?", "Do these things belong together?"}},
    {kFollowSide, "f_side", {"And {0}?"}},
    {kFollowKind, "f_kind", {"What kind of thing is {0}?", "What sort of thing is {0}?"}},
    {kFollowColour, "f_color", {"What color is {0}?"}},
    {kFollowEat, "f_eat", {"Can you eat {0}?", "Can I eat {0}?"}},
    {kFollowFly, "f_fly", {"Can {0} fly?"}},
    {kFollowAlive, "f_alive", {"Is {0} alive?", "Is {0} a living thing?"}},
    {kFollowWhere, "f_where", {"Where is it?"}},
    {kFollowCount, "f_count", {"And how many {0}?"}},
}};

const TypeRow& RowOf(QuestionType type) { return kTypes[static_cast<size_t>(type)]; }

constexpr std::array<std::string_view, kNumberWords> kNumbers = {"no", "one", "two", "three",
                                                                 "four"};

}  // namespace

std::string_view NameOf(QuestionType type) { return RowOf(type).name; }

QuestionType QuestionTypeNamed(std::string_view name) {
  std::string names;
  for (const TypeRow& row : kTypes) {
    if (row.name == name) return row.type;
    (names += ' ') += row.name;
  }
  throw std::invalid_argument("no type of question is called \"" + std::string(name) +
                              "\"; there are" + names);
}

std::span<const std::string_view> WordingsOf(QuestionType type) {
  const auto& wordings = RowOf(type).wordings;
  size_t count = 0;
  while (count < wordings.size() && !wordings[count].empty()) ++count;
  return {wordings.data(), count};
}

std::string Fill(std::string_view wording, std::initializer_list<std::string_view> parts) {
  std::string filled;
  for (size_t i = 0; i < wording.size(); ++i) {
    if (wording[i] == '{') {
      filled += parts.begin()[wording[i + 1] - '0'];
      i += 2;
    } else {
      filled += wording[i];
    }
  }
  return filled;
}

std::string_view NumberWord(int number) { return kNumbers.at(number); }

std::string CountAnswer(int number) {
  return number == 0 ? "None." : Capitalized(std::string(NumberWord(number))) + ".";
}

std::string Capitalized(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

std::string JoinWords(const std::vector<std::string>& words) {
  std::string joined;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) joined += i + 1 == words.size() ? " and " : ", ";
    joined += words[i];
  }
  return joined;
}

std::string KindPhrase(std::string_view group) {
  if (group == "food") return "food";
  const bool vowel = group.starts_with('a') || group.starts_with('o');  // animal, object
  return (vowel ? "an " : "a ") + std::string(group);
}

std::string_view SidePhrase(Side side) {
  constexpr std::array<std::string_view, 4> kPhrases = {"on the left", "on the right", "at the top",
                                                        "at the bottom"};
  return kPhrases[static_cast<size_t>(side)];
}

}  // namespace llava
