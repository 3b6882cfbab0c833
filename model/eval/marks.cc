#include "model/eval/marks.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include <ATen/Parallel.h>

#include "model/data/scenes/scoring.h"
#include "model/progress/for_each.h"

namespace llava {
namespace {

void Mark(const ExamDialogue& dialogue, std::span<const std::string> answers, Marks& marks) {
  bool all_right = true;
  for (size_t i = 0; i < dialogue.turns.size(); ++i) {
    const Turn& turn = dialogue.turns[i];
    const bool right = SameAnswer(turn.type, turn.answer, answers[i]);
    all_right &= right;
    if (dialogue.counted[i]) marks.Of(turn.type) += {right, 1};
  }
  if (dialogue.whole) marks.chains += {all_right, 1};
}

void TellMistakes(const Scene& scene, const ExamDialogue& dialogue,
                  std::span<const std::string> answers, const MistakeListener& mistaken) {
  for (size_t i = 0; i < dialogue.turns.size(); ++i) {
    const Turn& turn = dialogue.turns[i];
    if (dialogue.counted[i] && !SameAnswer(turn.type, turn.answer, answers[i])) {
      mistaken(scene, turn, answers[i]);
    }
  }
}

// Turns up to the last one that matters.
size_t TurnsNeeded(const ExamDialogue& dialogue) {
  if (dialogue.whole) return dialogue.turns.size();
  const auto last = std::find(dialogue.counted.rbegin(), dialogue.counted.rend(), true);
  return dialogue.counted.rend() - last;
}

}  // namespace

Marks& Marks::operator+=(const Marks& other) {
  for (size_t i = 0; i < types.size(); ++i) types[i] += other.types[i];
  chains += other.chains;
  return *this;
}

int64_t NumTurns(const Exam& exam) {
  int64_t turns = 0;
  for (const ExamScene& scene : exam) {
    for (const ExamDialogue& dialogue : scene.dialogues) {
      turns += static_cast<int64_t>(TurnsNeeded(dialogue));
    }
  }
  return turns;
}

Marks Examine(const Exam& exam, const std::function<std::unique_ptr<Examinee>()>& make, int threads,
              const std::function<void(int64_t turns)>& answered, const MistakeListener& mistaken) {
  // LibTorch's setting is partly per thread and partly common: put back as it was.
  struct KeptThreads {
    const int before = at::get_num_threads();
    ~KeptThreads() { at::set_num_threads(before); }
  } const kept;
  Marks marks;
  std::mutex mutex;  // guards the marks and those who listen
  ForEach(std::ssize(exam), threads, [&] {
    at::set_num_threads(1);
    return [&, examinee = std::shared_ptr(make())](int64_t i) {
      examinee->Show(exam[i].scene);
      for (const ExamDialogue& dialogue : exam[i].dialogues) {
        examinee->Begin();
        std::vector<std::string> answers(dialogue.turns.size());
        const size_t needed = TurnsNeeded(dialogue);
        for (size_t turn = 0; turn < needed; ++turn) {
          answers[turn] = examinee->Answer(dialogue.turns[turn].question);
        }
        const std::lock_guard lock(mutex);
        Mark(dialogue, answers, marks);
        if (mistaken) TellMistakes(exam[i].scene, dialogue, answers, mistaken);
        if (answered) answered(static_cast<int64_t>(needed));
      }
    };
  });
  return marks;
}

Marks MarkCommonestAnswers(const Exam& exam, const Exam& practice) {
  struct Answer {
    int64_t count = 0;
    std::string text;
  };
  std::array<std::map<std::vector<std::string>, Answer>, kNumQuestionTypes> answers;
  for (const ExamScene& scene : practice) {
    for (const ExamDialogue& dialogue : scene.dialogues) {
      for (size_t i = 0; i < dialogue.turns.size(); ++i) {
        if (!dialogue.counted[i]) continue;  // not in proportion
        const Turn& turn = dialogue.turns[i];
        Answer& answer = answers[static_cast<size_t>(turn.type)][KeyWords(turn.type, turn.answer)];
        ++answer.count;
        answer.text = turn.answer;
      }
    }
  }
  std::array<std::string, kNumQuestionTypes> commonest;
  for (int i = 0; i < kNumQuestionTypes; ++i) {
    const auto best = std::max_element(
        answers[i].begin(), answers[i].end(),
        [](const auto& a, const auto& b) { return a.second.count < b.second.count; });
    if (best != answers[i].end()) commonest[i] = best->second.text;
  }
  Marks marks;
  std::vector<std::string> given;
  for (const ExamScene& scene : exam) {
    for (const ExamDialogue& dialogue : scene.dialogues) {
      given.clear();
      for (const Turn& turn : dialogue.turns) {
        given.push_back(commonest[static_cast<size_t>(turn.type)]);
      }
      Mark(dialogue, given, marks);
    }
  }
  return marks;
}

}  // namespace llava
