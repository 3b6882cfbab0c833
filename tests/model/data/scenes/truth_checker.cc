#include "tests/model/data/scenes/truth_checker.h"

#include <algorithm>
#include <cstdlib>
#include <set>

namespace llava {
namespace {

const Category& KindOf(const SceneObject& object) { return Categories().at(object.category); }

// Whether `text` fits a pattern in which each _ stands for some words; they go to `parts`.
bool Fits(std::string_view text, std::string_view pattern, std::vector<std::string>& parts) {
  parts.clear();
  size_t blank = pattern.find('_');
  if (!text.starts_with(pattern.substr(0, blank))) return false;
  while (blank != pattern.npos) {
    text.remove_prefix(pattern.substr(0, blank).size());
    pattern.remove_prefix(blank + 1);
    blank = pattern.find('_');
    const std::string_view next = pattern.substr(0, blank);
    const size_t at = blank == pattern.npos
                          ? (text.ends_with(next) ? text.size() - next.size() : text.npos)
                          : text.find(next);
    if (at == text.npos || at == 0) return false;
    parts.emplace_back(text.substr(0, at));
    text.remove_prefix(at);
  }
  return text == pattern;
}

std::string Upper(std::string text) {
  text.at(0) = static_cast<char>(text[0] - 'a' + 'A');
  return text;
}

std::string NumberAnswer(long number) {
  static const char* const kAnswers[] = {"None.", "One.", "Two.", "Three.", "Four."};
  return kAnswers[number];
}

std::string List(const std::vector<std::string>& words) {
  std::string text = words.at(0);
  for (size_t i = 1; i + 1 < words.size(); ++i) text += ", " + words[i];
  if (words.size() > 1) text += " and " + words.back();
  return text;
}

std::string WithA(const Category& category) {
  return (std::string("aeiou").find(category.name[0]) == std::string::npos ? "a " : "an ") +
         category.name;
}

// "" if the object is so near a border that people could disagree.
std::string Place(const SceneObject& object) {
  for (const int centre : {object.x, object.y}) {
    for (const int border : {32, 64}) {
      if (std::abs(centre - border) <= 2) return "";
    }
  }
  const std::string across = object.x < 32 ? "left" : object.x > 64 ? "right" : "";
  const std::string down = object.y < 32 ? "top" : object.y > 64 ? "bottom" : "";
  if (across.empty() && down.empty()) return "in the center";
  if (across.empty()) return "at the " + down;
  if (down.empty()) return "on the " + across;
  return "at the " + down + " " + across;
}

std::string YesNo(bool yes) { return yes ? "Yes." : "No."; }

}  // namespace

int TruthChecker::Count(std::string_view name) const {
  int count = 0;
  for (const SceneObject& object : scene_.objects) count += KindOf(object).name == name;
  return count;
}

const SceneObject* TruthChecker::Only(std::string_view name) const {
  if (Count(name) != 1) return nullptr;
  for (const SceneObject& object : scene_.objects) {
    if (KindOf(object).name == name) return &object;
  }
  return nullptr;
}

// By pixels: the outermost, if no other one comes within 8 pixels of it.
const SceneObject* TruthChecker::AtSide(std::string_view phrase) const {
  if (scene_.objects.size() < 2) return nullptr;
  const auto depth = [&](const SceneObject& object) {
    if (phrase == "on the left") return object.x;
    if (phrase == "on the right") return -object.x;
    if (phrase == "at the top") return object.y;
    if (phrase == "at the bottom") return -object.y;
    std::abort();
  };
  std::vector<const SceneObject*> order;
  for (const SceneObject& object : scene_.objects) order.push_back(&object);
  std::sort(order.begin(), order.end(),
            [&](const auto* a, const auto* b) { return depth(*a) < depth(*b); });
  return depth(*order[1]) - depth(*order[0]) < 8 ? nullptr : order[0];
}

std::string TruthChecker::Things() const {
  static const char* const kNumbers[] = {"", "", "two ", "three ", "four "};
  std::vector<std::string> words;
  std::set<std::string> seen;
  for (const SceneObject& object : scene_.objects) {
    const Category& kind = KindOf(object);
    if (!seen.insert(kind.name).second) continue;
    const int count = Count(kind.name);
    words.push_back(count == 1 ? WithA(kind) : kNumbers[count] + kind.plural);
  }
  return List(words);
}

std::string TruthChecker::Detail() const {
  std::vector<std::string> words;
  for (const SceneObject& object : scene_.objects) {
    const std::string place = Place(object);
    if (place.empty()) return "";
    words.push_back(WithA(KindOf(object)) + " " + place);
  }
  return Upper(List(words)) + ".";
}

std::vector<std::string> TruthChecker::CaptionAnswers() const {
  const std::string background(kBackgrounds.at(scene_.background).name);
  std::vector<std::string> answers = {Upper(Things()) + ".",
                                      Upper(Things()) + " on a " + background + " background."};
  if (const std::string detail = Detail(); !detail.empty()) answers.push_back(detail);
  return answers;
}

std::string TruthChecker::PictureAnswer(const std::string& question) {
  std::vector<std::string> parts;
  for (const char* wording : {"What is in the picture?", "What do you see?",
                              "What can you see in this picture?", "What does the picture show?"}) {
    if (question == wording) return Upper(Things()) + ".";
  }
  if (question == "What is this?" || question == "What is it?") {
    if (scene_.objects.size() != 1) return "";
    it_ = &scene_.objects[0];
    return Upper(Things()) + ".";
  }
  if (question.ends_with(" color is the background?")) {
    return "It is " + std::string(kBackgrounds.at(scene_.background).name) + ".";
  }
  if (Fits(question, "How many _ are there?", parts) ||
      Fits(question, "How many _ do you see?", parts) ||
      Fits(question, "How many _ are in the picture?", parts) ||
      Fits(question, "And how many _?", parts)) {
    const std::string& word = parts[0];
    long count = 0;
    bool known = word == "things";
    for (const SceneObject& object : scene_.objects) {
      const Category& kind = KindOf(object);
      count += word == "things" || word == kind.plural || word == kind.group + "s";
    }
    for (const Category& kind : Categories())
      known |= word == kind.plural || word == kind.group + "s";
    return known ? NumberAnswer(count) : "";
  }
  if (Fits(question, "Is there _ in the picture?", parts) || Fits(question, "Is there _?", parts) ||
      Fits(question, "Do you see _?", parts)) {
    for (const Category& kind : Categories()) {
      if (parts[0] == WithA(kind)) return YesNo(Count(kind.name) > 0);
    }
  }
  return "";
}

std::string TruthChecker::PositionAnswer(const std::string& question) {
  std::vector<std::string> parts;
  for (const char* wording : {"What is _?", "What do you see _?", "Which thing is _?", "And _?"}) {
    if (!Fits(question, wording, parts)) continue;
    for (const char* side : {"on the left", "on the right", "at the top", "at the bottom"}) {
      if (parts[0] != side) continue;
      it_ = AtSide(side);
      return it_ == nullptr ? "" : Upper(WithA(KindOf(*it_))) + ".";
    }
  }
  if (question == "Where is it?") {
    if (it_ == nullptr || Count(KindOf(*it_).name) != 1 || Place(*it_).empty()) return "";
    return Upper(Place(*it_)) + ".";
  }
  if (Fits(question, "Where is the _?", parts) ||
      Fits(question, "Where do you see the _?", parts)) {
    const SceneObject* object = Only(parts[0]);
    return object == nullptr || Place(*object).empty() ? "" : Upper(Place(*object)) + ".";
  }
  if (Fits(question, "Which is _, the _ or the _?", parts)) {
    const SceneObject *a = Only(parts[1]), *b = Only(parts[2]);
    if (a == nullptr || b == nullptr || std::abs(a->size - b->size) < 8) return "";
    const bool first = (a->size > b->size) == (parts[0] == "bigger");
    return "The " + parts[first ? 1 : 2] + ".";
  }
  if (Fits(question, "Is the _ above or below the _?", parts)) {
    const SceneObject *a = Only(parts[0]), *b = Only(parts[1]);
    if (a == nullptr || b == nullptr || std::abs(a->y - b->y) < 8) return "";
    return a->y < b->y ? "Above." : "Below.";
  }
  if (Fits(question, "What is to the _ of the _?", parts)) {
    const SceneObject* b = Only(parts[1]);
    if (b == nullptr || scene_.objects.size() != 2) return "";
    const SceneObject& a = scene_.objects[b == &scene_.objects[0] ? 1 : 0];
    if (std::abs(a.x - b->x) < 8 || (a.x < b->x) != (parts[0] == "left")) return "";
    return Upper(WithA(KindOf(a))) + ".";
  }
  bool sides = Fits(question, "Is the _ to the left or to the right of the _?", parts);
  if (!sides && Fits(question, "On which side of the _ is the _?", parts)) {
    std::swap(parts[0], parts[1]);
    sides = true;
  }
  if (!sides) return "";
  const SceneObject *a = Only(parts[0]), *b = Only(parts[1]);
  if (a == nullptr || b == nullptr || std::abs(a->x - b->x) < 8) return "";
  return a->x < b->x ? "On the left." : "On the right.";
}

// What "it", "the thing on the left" or "a lion" is.
const Category* TruthChecker::Subject(const std::string& words) {
  if (words == "it") return it_ == nullptr ? nullptr : &KindOf(*it_);
  if (words == "this thing" || words == "the thing in the picture") {
    return scene_.objects.size() == 1 ? &KindOf(scene_.objects[0]) : nullptr;
  }
  if (words.starts_with("the thing ")) {
    const SceneObject* object = AtSide(words.substr(10));
    return object == nullptr ? nullptr : &KindOf(*object);
  }
  for (const Category& kind : Categories()) {
    if (words == WithA(kind) || words == "the " + kind.name) return &kind;
  }
  return nullptr;
}

std::string TruthChecker::FactAnswer(const std::string& question) {
  std::vector<std::string> parts;
  const Category* kind = nullptr;
  const auto about = [&](const char* wording) {
    return Fits(question, wording, parts) && (kind = Subject(parts[0])) != nullptr;
  };
  if (about("What kind of thing is _?") || about("What sort of thing is _?")) {
    if (kind->group == "food") return "It is food.";
    return (kind->group == "animal" || kind->group == "object" ? "It is an " : "It is a ") +
           kind->group + ".";
  }
  if (about("What color is _?")) return "It is " + kind->colour + ".";
  if (about("Is _ alive?") || about("Is _ a living thing?")) return YesNo(kind->alive);
  if (about("Can you eat _?") || about("Can I eat _?")) return YesNo(kind->edible);
  if (about("Can _ fly?")) return YesNo(kind->flies);

  std::set<std::string> names, groups, eaten, flying;
  for (const SceneObject& object : scene_.objects) {
    const Category& one = KindOf(object);
    names.insert(one.name);
    groups.insert(one.group);
    if (one.edible) eaten.insert(one.name);
    if (one.flies) flying.insert(one.name);
  }
  if (names.size() < 2) return "";
  if (question == "Are all things of the same kind?" ||
      question == "Do these things belong together?") {
    return YesNo(groups.size() == 1);
  }
  const bool eat = question == "Which one can you eat?" || question == "Which thing can I eat?";
  const bool fly = question == "Which one can fly?" || question == "Which thing can fly?";
  const std::set<std::string>& able = eat ? eaten : flying;
  if ((!eat && !fly) || able.size() > 1) return "";
  return able.empty() ? "None." : "The " + *able.begin() + ".";
}

std::vector<std::string> TruthChecker::RightAnswers(const std::string& question) {
  for (const std::string& answer :
       {PictureAnswer(question), PositionAnswer(question), FactAnswer(question)}) {
    if (!answer.empty()) return {answer};
  }
  return {};
}

std::string TruthChecker::Fault(const Turn& turn) {
  std::vector<std::string> right;
  if (turn.type == QuestionType::kBrief) {
    right = CaptionAnswers();
  } else if (turn.type == QuestionType::kDetail) {
    right = {Detail() + " The background is " +
             std::string(kBackgrounds.at(scene_.background).name) + "."};
  } else {
    right = RightAnswers(turn.question);
  }
  if (right.empty()) return "no fair question here: " + turn.question;
  if (std::find(right.begin(), right.end(), turn.answer) != right.end()) return "";
  return turn.question + " " + turn.answer + " but it is " + right[0];
}

}  // namespace llava
