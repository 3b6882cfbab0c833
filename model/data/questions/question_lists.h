#pragma once

// What people ask for a caption and for a description: lists in our own words, one question a line.

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

std::string_view BriefQuestionsText();     // brief.txt
std::string_view DetailedQuestionsText();  // detailed.txt

// The lines of a list without white space at their ends; empty lines are left out. Throws
// std::invalid_argument naming `source` if no line is left, or one holds "<image>".
std::vector<std::string> ParseQuestionList(std::string_view text, const std::string& source);

// The built-in list, or that of a file of the user's own. Throws std::invalid_argument naming the
// path as well if it cannot be read.
std::vector<std::string> BriefQuestions(const std::filesystem::path& own = {});
std::vector<std::string> DetailedQuestions(const std::filesystem::path& own = {});

}  // namespace llava
