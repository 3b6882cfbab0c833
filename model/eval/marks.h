#pragma once

// Right answers counted, for an examinee and for baselines that need none.

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "model/eval/exam.h"
#include "model/eval/examinee.h"
#include "model/eval/share.h"

namespace llava {

struct Marks {
  std::array<Share, kNumQuestionTypes> types;
  Share chains;  // right in all turns

  Share& Of(QuestionType type) { return types[static_cast<size_t>(type)]; }
  const Share& Of(QuestionType type) const { return types[static_cast<size_t>(type)]; }
  Marks& operator+=(const Marks& other);
  bool operator==(const Marks&) const = default;
};

// A question, where it was asked and what was answered.
using MistakeListener =
    std::function<void(const Scene& scene, const Turn& turn, const std::string& given)>;

// Turns that an exam asks, those of chains that count for nothing included.
int64_t NumTurns(const Exam& exam);

// Examines on so many threads (0: one a core) with one thread of LibTorch each; `make` is called on
// each of them.
// `answered` (may be empty) gets the number of turns answered since its last call, on any thread
// but one at a time. The marks do not depend on the number of threads. Throws what an examinee
// throws. `mistaken` (may be empty) gets every wrong answer that counts, likewise.
Marks Examine(const Exam& exam, const std::function<std::unique_ptr<Examinee>()>& make, int threads,
              const std::function<void(int64_t turns)>& answered = {},
              const MistakeListener& mistaken = {});

// Answers every question of a type by the answer that is the commonest for it in another exam.
Marks MarkCommonestAnswers(const Exam& exam, const Exam& practice);

}  // namespace llava
