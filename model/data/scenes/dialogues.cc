// Several turns about one scene.
#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>

#include "model/data/scenes/question_parts.h"

namespace llava {
namespace {

using enum QuestionType;

constexpr std::array<QuestionType, 5> kFacts = {kKind, kColour, kEat, kFly, kAlive};
constexpr double kChainsInConversations = 0.3;
constexpr double kCountChains = 0.25;  // of all chains
constexpr int kDraws = 1000;

// kFollowKind .. kFollowAlive stand in the order of kKind .. kAlive.
QuestionType FactOf(QuestionType follow_up) {
  const int offset = static_cast<int>(follow_up) - static_cast<int>(kFollowKind);
  return static_cast<QuestionType>(static_cast<int>(kKind) + offset);
}

// Whether the same was asked before: word for word, or as a type that can only mean one thing.
bool Asked(const Dialogue& dialogue, const Turn& next) {
  const auto wordings = WordingsOf(next.type);
  const bool one_meaning = std::all_of(
      wordings.begin(), wordings.end(),
      [](std::string_view wording) { return wording.find('{') == std::string_view::npos; });
  return std::any_of(dialogue.begin(), dialogue.end(), [&](const Turn& turn) {
    return turn.question == next.question || (one_meaning && turn.type == next.type);
  });
}

}  // namespace

std::optional<Dialogue> Questioner::CountChain(const Scene& scene, Random& random) const {
  const auto first = DrawCount(scene, std::nullopt, random);
  if (!first) return std::nullopt;
  const auto second = DrawCount(scene, first->category, random);
  if (!second) return std::nullopt;
  const bool swapped = random.Chance(0.5);  // the first draw prefers the rarer number
  Dialogue dialogue;
  for (const auto& [type, count] : {std::pair(kCount, swapped ? *second : *first),
                                    std::pair(kFollowCount, swapped ? *first : *second)}) {
    const std::string& plural = Categories()[count.category].plural;
    dialogue.push_back(
        {type, Fill(random.Pick(WordingsOf(type)), {plural}), CountAnswer(count.number)});
  }
  return dialogue;
}

std::optional<Dialogue> Questioner::AskChain(const Scene& scene, Random& random) const {
  NeedConversation();
  if (random.Chance(kCountChains)) return CountChain(scene, random);

  Dialogue dialogue;
  const SceneObject* it = nullptr;  // what "it" means
  if (scene.objects.size() == 1) {
    it = &scene.objects[0];
    dialogue.push_back(*Ask(scene, kThis, random));
  } else {
    const Side side = random.Pick(kSides);
    it = Outermost(scene, side);
    if (it == nullptr) return std::nullopt;
    dialogue.push_back(
        {kSide, Fill(random.Pick(WordingsOf(kSide)), {SidePhrase(side)}), NamingAnswer(*it)});
  }
  std::vector<QuestionType> about_it;  // asked since "it" last changed
  const int follow_ups = random.Between(1, 3);
  for (int i = 0; i < follow_ups; ++i) {
    const QuestionType type = random.Pick(follow_ups_);
    std::optional<Turn> turn;
    if (type == kFollowSide) {
      const Side side = random.Pick(kSides);
      const SceneObject* object = Outermost(scene, side);
      const std::string_view phrase = SidePhrase(side);
      const bool used = std::any_of(dialogue.begin(), dialogue.end(), [&](const Turn& earlier) {
        return earlier.question.find(phrase) != std::string::npos;
      });
      if (object == nullptr || used) continue;
      it = object;
      about_it.clear();
      turn = {type, Fill(random.Pick(WordingsOf(type)), {phrase}), NamingAnswer(*it)};
    } else if (type == kFollowWhere) {
      const auto place = PlacePhrase(*it);
      if (!place || CountOf(scene, it->category) > 1) continue;  // "it" would be any of them
      turn = {type, std::string(random.Pick(WordingsOf(type))), Capitalized(*place) + "."};
    } else {
      turn = AskAbout(Categories()[it->category], FactOf(type), "it", random);
      if (!turn) continue;
      turn->type = type;
    }
    if (std::count(about_it.begin(), about_it.end(), type) > 0) continue;
    about_it.push_back(type);
    dialogue.push_back(*std::move(turn));
  }
  return dialogue.size() > 1 ? std::optional(std::move(dialogue)) : std::nullopt;
}

void Questioner::NeedConversation() const {
  if (kinds_.conversation) return;
  throw std::invalid_argument("dialogues are conversation, which is not among the kinds");
}

Dialogue Questioner::Converse(const Scene& scene, size_t turns, Random& random) const {
  NeedConversation();
  Dialogue dialogue;
  for (int draw = 0; draw < kDraws && dialogue.size() < turns; ++draw) {
    Dialogue next;
    if (random.Chance(kChainsInConversations)) {
      next = AskChain(scene, random).value_or(Dialogue());
    } else if (auto turn = AskOneOf(scene, mixture_, random)) {
      next.push_back(*std::move(turn));
    }
    // Follow-ups may come again: they mean something else after another first question.
    if (next.empty() || Asked(dialogue, next.front())) continue;
    dialogue.insert(dialogue.end(), next.begin(), next.end());
  }
  return dialogue;
}

Dialogue Questioner::ShortDialogue(const Scene& scene, Random& random) const {
  while (true) {
    const double form = random.Uniform();
    if (form < 0.25) {
      if (auto chain = AskChain(scene, random)) return *std::move(chain);
    } else {
      return Converse(scene, form < 0.85 ? 1 : 2, random);
    }
  }
}

Turn Questioner::AskFact(Random& random) const {
  while (true) {
    const Category& category = Categories()[random.Below(static_cast<uint32_t>(num_categories_))];
    const QuestionType fact = random.Pick(kFacts);
    const std::string subject = random.Chance(0.5) ? WithArticle(category) : "the " + category.name;
    if (auto turn = AskAbout(category, fact, subject, random)) return *std::move(turn);
  }
}

}  // namespace llava
