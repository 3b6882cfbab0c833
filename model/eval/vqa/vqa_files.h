#pragma once

// Questions with the answers of people, and those of a model, as the benchmarks lay them out.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "model/eval/vqa/vqa_accuracy.h"

namespace llava {

struct VqaQuestion {
  std::string id;
  std::vector<std::string> answers;  // of people, or the right ones; at least one
  std::string group;                 // what the key of ReadVqaQuestions says; may be empty
};

// JSON lines, a JSON array, VQA's object with "annotations" (TextVQA's: "data"), or GQA's of
// questions by their ids. Of each:
// "question_id" and "answers" (texts, or objects with "answer"), "answer" or "label". `group_key`:
// such as "answer_type"; empty: none. Throws std::runtime_error naming file and place.
// `textvqa`: the id of records with "image_id" and "question" is TextVqaId of both.
std::vector<VqaQuestion> ReadVqaQuestions(const std::filesystem::path& path,
                                          const std::string& group_key, bool textvqa = false);

// By id: "text" or "answer". Layouts and errors as above; an id that comes twice is an error.
// `textvqa`: the id of records with a "prompt" is TextVqaId of "question_id" and the prompt's
// question.
std::map<std::string, std::string> ReadVqaAnswers(const std::filesystem::path& path,
                                                  bool textvqa = false);

// LLaVA's answers to TextVQA name the picture, not the question.
std::string TextVqaId(const std::string& image, const std::string& question);
// The question of a prompt of LLaVA's TextVQA: its line before the request for a short answer, with
// a line of OCR tokens before or behind it. Our own answers have the picture's mark in front.
std::string QuestionOfTextVqaPrompt(const std::string& prompt);

// POPE's counts by category, in the order of the labels' files. A category is the name of its file,
// without "coco_pope_" in front. Labels and answers are joined by "question_id"; with a file of
// questions (lines with "question_id" and "category") as LLaVA's evaluation does: the n-th question
// of the category belongs to the n-th label, in whatever order the answers are. Throws
// std::runtime_error naming file and line, also for an id that comes twice, std::invalid_argument
// if numbers or ids do not fit.
std::vector<std::pair<std::string, PopeCounts>> CountPope(
    const std::vector<std::filesystem::path>& labels, const std::filesystem::path& answers,
    const std::filesystem::path& questions);

}  // namespace llava
