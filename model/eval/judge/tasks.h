#pragma once

// What a judge is asked: a question, what the picture shows in words, two answers, and a rule.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

struct JudgeFiles {
  std::filesystem::path questions;  // lines {"question_id", "text", "category", "image"?}
  // Lines {"image", "captions": [..], "instances": [{"category", "bbox"}]} as for COCO, or
  // {"image", "caption": text or [..]} as in the wild; empty: judged without a picture.
  std::filesystem::path contexts;
  std::filesystem::path rules;                 // {category: {"role", "prompt"}}; empty: our own
  std::filesystem::path reference, candidate;  // lines {"question_id", "text", "answer_id"?}
};

struct JudgeTask {
  std::string question_id;
  // What a review repeats in front of "content" and "tuple": "id", "question_id", "answer1_id",
  // "answer2_id", "category".
  nlohmann::ordered_json head;
  std::string system, prompt;
};

// One task per question, in their order, joined by id; laid out as LLaVA's evaluation does, with
// its category names ("llava_bench_conv" in the wild). A category without a rule takes "default".
// Throws std::invalid_argument listing the ids that not all files have, or the pictures without
// context, or the categories without a rule; std::runtime_error naming file and line otherwise.
std::vector<JudgeTask> JoinJudgeFiles(const JudgeFiles& files);

// Our own rules, as JSON.
std::string_view JudgeRulesJson();

}  // namespace llava
