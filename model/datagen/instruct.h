#pragma once

// Instruction data from captions and boxes: a teacher that sees no pictures is asked for
// conversations, descriptions and reasoning, and what it answers is screened.

#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "model/datagen/captioned_images.h"
#include "model/datagen/prompt_set.h"
#include "model/datagen/quality_gates.h"
#include "model/openai/chat_run.h"

namespace llava {

// Of each response type, in the order of kResponseTypes. The paper's: 58 : 23 : 77.
using Mix = std::array<double, kResponseTypes.size()>;
inline constexpr Mix kPaperMix = {58, 23, 77};

struct InstructTask {
  uint32_t image = 0;  // its number
  ResponseType type = ResponseType::kConversation;
};

// `count` tasks over `num_images` pictures (0: as many as pictures), in random order, types in the
// proportions of `mix`; as many pictures as possible have one, and none has two of the same type. A
// larger count with the same seed has all tasks of a smaller one, up to rounding. Throws
// std::invalid_argument if the pictures do not suffice.
std::vector<InstructTask> PlanTasks(size_t num_images, const Mix& mix, uint64_t count,
                                    uint64_t seed);

struct InstructOptions {
  std::filesystem::path out;      // folder
  std::filesystem::path journal;  // empty: journal.jsonl in it
  Mix mix = kPaperMix;
  uint64_t count = 0;
  uint64_t seed = 1;
  // Who sees boxes; the paper's conversations do not.
  std::array<bool, kResponseTypes.size()> boxes = {false, true, true};
  Language language = Language::kEnglish;
  std::vector<std::string> detailed_questions;
  ChatRequest request;  // all but id and messages
  ChatRun::Options run;
};

struct InstructEnd {
  ChatRun::Outcome outcome = ChatRun::Outcome::kFinished;
  bool replaced = false;             // the files bear their names, not ".partial"
  uint64_t planned = 0, failed = 0;  // requests
};

// Asks, and writes into the folder: instruct.json (LLaVA's format and "type"; <image> in front of
// or behind the first question by chance), rejected.jsonl, report.json and report.md. Equal options
// and answers give equal bytes of the first two. A run that ended early goes on from the journal;
// stopped by a signal it writes nothing else, at the budget's end or after an error it writes what
// there is. If an earlier run left more records, a run that did not come to its end, or in which
// requests failed that had not failed in that one, leaves them alone and writes ".partial" behind
// its own names. Throws std::invalid_argument for wrong options or a folder that holds something
// else, std::runtime_error as ChatRun, for files that cannot be written, and when it has written
// that no request was answered.
InstructEnd WriteInstructions(const std::vector<CaptionedImage>& images, const PromptSet& prompts,
                              ChatBackend& teacher, const InstructOptions& options,
                              std::FILE* progress);

// Naive expansion (stage 1): for each picture one of its captions as the answer to one of the brief
// questions, in the order of the pictures. Throws std::runtime_error naming the file.
void WriteExpansion(const std::vector<CaptionedImage>& images,
                    const std::vector<std::string>& brief_questions, uint64_t seed,
                    const std::filesystem::path& file);

}  // namespace llava
