#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace llava {

struct QuestionAnswer {
  std::string question, answer;
};

// A record of LLaVA's instruction data (ParseInstructionRecord reads it) about a picture, whose
// <image> stands before or behind the first question; without `image` about none.
nlohmann::ordered_json InstructionRecordJson(const std::string& id, const std::string& image,
                                             const std::vector<QuestionAnswer>& turns,
                                             bool image_first);

}  // namespace llava
