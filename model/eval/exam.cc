#include "model/eval/exam.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "model/data/scenes/scoring.h"

namespace llava {
namespace {

using enum QuestionType;

// Purposes of random numbers, apart from each other and from those of training.
constexpr uint64_t kSceneSeed = 0x6578616D'7363656E;
constexpr uint64_t kAsking = 0x6578616D'61736B73;

// Scenes without a new question of a type after which it is asked less fairly, then no more.
constexpr int64_t kPatience = 4000;
constexpr int64_t kMostScenes = 400'000;  // by when every type has its last chance

// How many answers a type has if they are few and can be made equally frequent, else 0.
int NumAnswers(QuestionType type, const SceneOptions& scenes) {
  switch (type) {
    case kExist:
    case kSideOf:
    case kAbove:
    case kEat:
    case kFly:
    case kAlive:
    case kSame:
    case kFollowEat:
    case kFollowFly:
    case kFollowAlive:
      return 2;
    case kCount:
    case kGroupCount:
    case kFollowCount:
      return scenes.max_objects + 1;
    case kTotal:
      return scenes.max_objects - scenes.min_objects + 1;
    case kBackground:
      return static_cast<int>(kBackgrounds.size());
    default:
      return 0;
  }
}

// Which questions are still wanted.
class Wanted {
 public:
  explicit Wanted(const ExamOptions& options) : per_type_(options.per_type) {
    for (int i = 0; i < kNumQuestionTypes; ++i) {
      const int answers = NumAnswers(static_cast<QuestionType>(i), options.scenes);
      if (answers > 0) types_[i].most_of_one = (per_type_ + answers - 1) / answers;
    }
    if (options.wordings.brief.empty()) Of(kBrief).open = false;
  }

  bool Wants(QuestionType type) const { return types_[static_cast<size_t>(type)].open; }

  // Whether this question is one more of its type; counts it then.
  bool Take(const Turn& turn, int64_t scene) {
    Type& type = Of(turn.type);
    if (!type.open) return false;
    std::string answer;
    for (const std::string& word : KeyWords(turn.type, turn.answer)) answer += word + ' ';
    if (type.most_of_one) {
      if (type.answers[answer] == *type.most_of_one) return false;
      ++type.answers[answer];
    }
    type.last_scene = scene;
    if (++type.taken == per_type_) type.open = false;
    return true;
  }

  // Gives up what scenes do not allow. False: nothing is wanted any more.
  bool GoOn(int64_t scene) {
    bool open = false;
    for (Type& type : types_) {
      if (!type.open) continue;
      if (scene - type.last_scene > kPatience || scene >= kMostScenes) {
        if (type.most_of_one && scene < kMostScenes) {
          type.most_of_one.reset();  // an answer that does not occur: the others may take its place
          type.last_scene = scene;
        } else {
          type.open = false;
        }
      }
      open |= type.open;
    }
    return open;
  }

 private:
  struct Type {
    bool open = true;
    int taken = 0;
    int64_t last_scene = 0;
    std::optional<int> most_of_one;  // questions with the same answer
    std::map<std::string, int> answers;
  };
  Type& Of(QuestionType type) { return types_[static_cast<size_t>(type)]; }

  int per_type_;
  std::array<Type, kNumQuestionTypes> types_;
};

bool WantsFollowUps(const Wanted& wanted) {
  for (int i = static_cast<int>(kFollowSide); i <= static_cast<int>(kFollowCount); ++i) {
    if (wanted.Wants(static_cast<QuestionType>(i))) return true;
  }
  return false;
}

}  // namespace

Exam MakeExam(const ExamOptions& options) {
  options.scenes.Check();
  if (options.per_type < 1) {
    throw std::invalid_argument("questions per type must be at least 1, found " +
                                std::to_string(options.per_type));
  }
  const Questioner questioner(options.scenes.num_categories, options.wordings);
  const uint64_t scene_seed = Random(options.seed, 0, kSceneSeed).Bits();
  Wanted wanted(options);
  Exam exam;
  int chains = 0;
  for (int64_t number = 0; wanted.GoOn(number); ++number) {
    ExamScene next{SampleScene(options.scenes, scene_seed, number), {}};
    Random random(options.seed, number, kAsking);
    for (int i = 0; i <= static_cast<int>(kSame); ++i) {
      const auto type = static_cast<QuestionType>(i);
      if (!wanted.Wants(type)) continue;
      auto turn = questioner.Ask(next.scene, type, random);
      if (!turn || !wanted.Take(*turn, number)) continue;
      next.dialogues.push_back({{*std::move(turn)}, {true}, false});
    }
    if (chains < options.per_type || WantsFollowUps(wanted)) {
      if (auto chain = questioner.AskChain(next.scene, random)) {
        ExamDialogue dialogue{*std::move(chain), {}, chains < options.per_type};
        chains += dialogue.whole;
        bool counts = dialogue.whole;
        for (const Turn& turn : dialogue.turns) {
          // First turns are no follow-ups: their types are asked by themselves.
          const bool counted = turn.type >= kFollowSide && wanted.Take(turn, number);
          dialogue.counted.push_back(counted);
          counts |= counted;
        }
        if (counts) next.dialogues.push_back(std::move(dialogue));
      }
    }
    if (!next.dialogues.empty()) exam.push_back(std::move(next));
  }
  return exam;
}

}  // namespace llava
