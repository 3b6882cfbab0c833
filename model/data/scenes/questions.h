#pragma once

// Questions about scenes with true answers. Types, wordings and balance follow the measured recipe
// of the embedded default: yes and no come equally often, and so do numbers as far as scenes allow.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/data/scenes/instruction_kinds.h"
#include "model/data/scenes/random.h"
#include "model/data/scenes/scene.h"
#include "model/data/scenes/wording.h"

namespace llava {

struct Turn {
  QuestionType type;
  std::string question;
  std::string answer;
};
using Dialogue = std::vector<Turn>;

// Wordings beyond the built-in tables, as llava-datagen's lists hold them.
struct MoreWordings {
  std::vector<std::string> brief;     // kBrief is never asked if empty
  std::vector<std::string> detailed;  // used beside the built-in ones of kDetail
};

// How often a type is drawn.
using TypeWeight = std::pair<QuestionType, double>;

// Every type that is no follow-up, in natural proportions.
std::span<const TypeWeight> NaturalMixture();
// The types that need the picture and a fact about the world.
std::span<const TypeWeight> ReasoningMixture();

// Asks. Const after construction, thread-safe; each thread brings its own random numbers.
class Questioner {
 public:
  // `num_categories`: those the scenes may hold (what is absent is drawn from them too). `kinds`:
  // what chains and conversations ask; single questions may be of any.
  explicit Questioner(int num_categories, MoreWordings more = {}, InstructionKinds kinds = {});

  // A question of this type; nothing if the scene does not allow a fair one or the draw was thinned
  // out for balance: draw again. Throws std::invalid_argument for follow-ups, which stand in
  // chains.
  std::optional<Turn> Ask(const Scene& scene, QuestionType type, Random& random) const;

  // Draws types until one can be asked. Nothing after 1000 vain draws, which cannot happen if the
  // types include one that is always possible, such as kWhat or kExist.
  std::optional<Turn> AskOneOf(const Scene& scene, std::span<const TypeWeight> types,
                               Random& random) const;

  // A question and one to three follow-ups that refer to it; nothing if the draw led nowhere. This
  // and all that talks in turns throws std::invalid_argument if `kinds` are without conversation.
  std::optional<Dialogue> AskChain(const Scene& scene, Random& random) const;

  // `turns` turns or somewhat more in a row about one scene, no question twice.
  Dialogue Converse(const Scene& scene, size_t turns, Random& random) const;

  // A short dialogue: of four one is a chain, most are single questions, some two unrelated ones.
  Dialogue ShortDialogue(const Scene& scene, Random& random) const;

  // A question about the world that needs no picture.
  Turn AskFact(Random& random) const;

 private:
  struct Count {
    int category, number;
  };

  std::optional<Turn> AskContent(const Scene& scene, QuestionType type, Random& random) const;
  std::optional<Turn> AskPosition(const Scene& scene, QuestionType type, Random& random) const;
  std::optional<Turn> AskReasoning(const Scene& scene, QuestionType type, Random& random) const;
  // A fact (kKind .. kAlive) about what `subject` names.
  std::optional<Turn> AskAbout(const Category& category, QuestionType fact,
                               std::string_view subject, Random& random) const;
  // A category, other than `except`, and its number in the scene; numbers are balanced.
  std::optional<Count> DrawCount(const Scene& scene, std::optional<int> except,
                                 Random& random) const;
  std::optional<Dialogue> CountChain(const Scene& scene, Random& random) const;
  void NeedConversation() const;

  int num_categories_;
  MoreWordings more_;
  InstructionKinds kinds_;
  // What is drawn from: of `kinds_` alone.
  std::vector<TypeWeight> mixture_;
  std::vector<QuestionType> follow_ups_;
  double edible_ = 0, flying_ = 0, living_ = 0;  // shares of the categories
};

}  // namespace llava
